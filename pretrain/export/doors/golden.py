"""Ten ECGs in every export, and the embeddings that must come out of it: `golden.safetensors`.

signal          int16 (10, 12, S) in uV, NO_NUMBER where a sample holds none; S is the contract's length, or a minute
lead_mask       bool (10, 12)
valid_samples   int64 (10,): shorter than S in the record that ends early
age             float32 (10,) in years, NaN = not known; only of an encoder that reads it
embedding       float32 (10, e) of the library that exported it; NaN in the row that every way in must refuse

The people are virtual (`data_shards.cohort`), the same in every export of a rate and a length; the file says in its
metadata what each record is. The last digits of the embeddings are those of the machine that exported.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.program import program_of
from cardialign.pretrain.run.integrity import GOLDEN, VerifiedExport
from cardialign.pretrain.run.tensors import load_numbers

SEED = 2027
"""Its noise is small: what each record is called can be seen in it."""
NO_NUMBER = -32768
"""An int16 that is no sample, as in WFDB's format 16."""
PER_MILLIVOLT = 1000.0
SYNTHESISED_SECONDS, LONGEST_SECONDS = 10.0, 60.0
"""Of a virtual recording, of which a shorter contract takes the beginning; of a longer contract no more is stored."""


class Person(NamedTuple):
    """what: of the record, for its reader; findings: of `cohort`; age in years; known: whether the file says it."""

    what: str
    findings: tuple[str, ...]
    age: float
    known: bool = False


PEOPLE = (
    Person("sinus rhythm", ("NORM",), 45, known=True),
    Person("atrial fibrillation", ("AFIB",), 71, known=True),
    Person("wide QRS: left bundle branch block", ("LBBB",), 66),
    Person("fast: sinus tachycardia", ("STACH",), 30),
    Person("low QRS voltage", ("LVOLT",), 58, known=True),
    Person("child", ("NORM",), 3, known=True),
    Person("I, II and V2 alone", ("NORM",), 50),
    Person("ends early", ("RBBB",), 77),
    Person("V3 is flat", ("LVH",), 62),
    Person("a sample of II is no number: refused", ("NORM",), 40),
)
FEW_LEADS, ENDS_EARLY, FLAT_LEAD, REFUSED = 6, 7, 8, 9
"""Places of the last four."""


class Golden(NamedTuple):
    """signal float32 (10, 12, S) in mV, NaN where it is no number; lead_mask, valid_samples, age (None of an encoder
    that reads none), embedding (10, e)."""

    signal: np.ndarray
    lead_mask: np.ndarray
    valid_samples: np.ndarray
    age: np.ndarray | None
    embedding: np.ndarray

    def given(self, samples: int) -> tuple[torch.Tensor, ...]:
        """What a program of so many samples takes."""
        signal = np.pad(self.signal, ((0, 0), (0, 0), (0, samples - self.signal.shape[-1])))
        return tuple(
            torch.from_numpy(each)
            for each in (signal, self.lead_mask, self.valid_samples, self.age)
            if each is not None
        )


def _stored_samples(contract: SignalContract) -> int:
    return min(contract.samples, max(1, int(LONGEST_SECONDS * contract.sampling_rate)))


@lru_cache(maxsize=4)
def _recordings(rate: float, samples: int) -> np.ndarray:
    """int16 (10, 12, samples) in uV."""
    from cardialign.data_shards.cohort.noise import digitise, electrode_noise
    from cardialign.data_shards.cohort.norms import ADULT
    from cardialign.data_shards.cohort.patients import Patient, Visit
    from cardialign.data_shards.cohort.synthesis import beat_heart, draft_visit

    made = []
    for number, (_, findings, age, _) in enumerate(PEOPLE):
        visit = Visit(number, number, age, datetime(2000, 1, 1), findings)
        patient = Patient(number, number, number % 2 == 0, age, visit.time, (visit,), by_age=age < ADULT)
        rng = np.random.default_rng([SEED, number])
        seconds = max(SYNTHESISED_SECONDS, samples / rate)
        heart = beat_heart(draft_visit(patient, visit, SEED, seconds), rate, rng)  # type: ignore[arg-type]
        noise = electrode_noise(heart.leads.shape[1], rate, 50.0, rng)
        made.append(digitise(heart.leads + noise, PER_MILLIVOLT, None)[:, :samples])
    return np.stack(made)


def golden_ecgs(contract: SignalContract) -> dict[str, np.ndarray]:
    """The ten records in the form of a contract, as the file holds them, without the embeddings."""
    samples = _stored_samples(contract)
    signal = _recordings(contract.sampling_rate, samples).astype(np.int16)
    mask = np.ones(signal.shape[:2], dtype=bool)
    mask[FEW_LEADS] = np.isin(STANDARD_LEADS, ("I", "II", "V2"))
    valid = np.full(len(PEOPLE), samples, dtype=np.int64)
    valid[ENDS_EARLY] = max(1, samples * 3 // 5)
    signal[~mask], signal[ENDS_EARLY, :, valid[ENDS_EARLY] :] = 0, 0
    signal[FLAT_LEAD, STANDARD_LEADS.index("V3")] = 0
    signal[REFUSED, STANDARD_LEADS.index("II"), samples // 3] = NO_NUMBER
    ages = np.array([each.age if each.known else np.nan for each in PEOPLE], dtype=np.float32)
    return {"signal": signal, "lead_mask": mask, "valid_samples": valid, **({"age": ages} if contract.age else {})}


def write_golden(encoder: EcgEncoder, contract: SignalContract, folder: Path) -> None:
    """Embed the ten records with an encoder on the CPU, and store both in `folder`.

    Raises OSError; UserError for an encoder that gives no numbers for them.
    """
    stored = golden_ecgs(contract)
    given = _golden_of(stored, np.empty(0)).given(contract.samples)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the order of sums, and so the digest of an export, follows from their number
        with torch.inference_mode(), ENCODERS.watched(encoder.word, "cannot embed"):
            embedding = program_of(encoder)(*given).float().numpy()
    finally:
        torch.set_num_threads(threads)
    broken = ~np.isfinite(embedding).all(axis=1)
    broken[REFUSED] = False
    if broken.any():
        raise UserError(
            f"the encoder gives no numbers for a plain ECG ({PEOPLE[int(np.argmax(broken))].what})",
            "export an earlier checkpoint",
        )
    what = {"records": "; ".join(each.what for each in PEOPLE)}  # one key: safetensors keeps no order of several
    (folder / GOLDEN).write_bytes(save({**stored, "embedding": embedding}, what))


def read_golden(parts: VerifiedExport, contract: SignalContract) -> Golden:
    """Of an export as it was checked. Raises UserError where it has none, and for others than fit its contract."""
    if GOLDEN not in parts.content:
        raise UserError(
            f"{parts.folder} holds no {GOLDEN}: it was exported before exports had ECGs to be held against",
            "export it again from its run: `cardialign export`",
        )
    try:
        found = load_numbers(parts.content[GOLDEN])
    except ValueError as error:
        raise parts.wrong(GOLDEN, str(error)) from None
    records, samples = len(PEOPLE), _stored_samples(contract)
    wanted: dict[str, tuple[tuple[int, ...], type]] = {
        "signal": ((records, len(STANDARD_LEADS), samples), np.int16),
        "lead_mask": ((records, len(STANDARD_LEADS)), np.bool_),
        "valid_samples": ((records,), np.int64),
        "embedding": ((records, contract.embedding_dim), np.float32),
        **({"age": ((records,), np.float32)} if contract.age else {}),
    }
    if {name: (each.shape, each.dtype.type) for name, each in found.items()} != wanted:
        raise parts.wrong(GOLDEN, "not ten ECGs of the form of the signal contract")
    return _golden_of(found, found["embedding"])


def _golden_of(stored: dict[str, np.ndarray], embedding: np.ndarray) -> Golden:
    signal = (stored["signal"] / PER_MILLIVOLT).astype(np.float32)
    signal[stored["signal"] == NO_NUMBER] = np.nan
    return Golden(signal, stored["lead_mask"], stored["valid_samples"], stored.get("age"), embedding)
