"""What an encoder was trained on, in a form that travels with it: so that an evaluation can say what it has seen.

provenance.json            per shard set: fingerprint, source, folds, split, number of records and patients
trained_on.safetensors     per shard set K: `K.patients` and `K.recordings`, sorted int64 digests of hashed patient ids
                           and of coded signals (crc32 and size), without order and without keys
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from cardialign.pretrain.run.integrity import PROVENANCE, TRAINED_ON, VerifiedExport
from cardialign.pretrain.run.tensors import load_numbers

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.shard_set.splits import SplitRule

_SILENT = 64
"""A signal that takes fewer bytes than a byte for so many samples holds next to nothing, and is no recording twice."""


@dataclass(frozen=True)
class Records:
    """Rows of a shard set that is at hand. consumed: they are those that were trained on; False: at most those."""

    shard_set: ShardSet
    rows: np.ndarray
    consumed: bool


@dataclass(frozen=True)
class TrainedSet:
    """The records of one shard set that a run selected. facts: as in provenance.json; patients and recordings: sorted
    int64 digests, None where only the facts are known. records: for the exposure certificate, where the set is at
    hand; no file holds them."""

    facts: dict[str, Any]
    patients: np.ndarray | None = None
    recordings: np.ndarray | None = None
    records: Records | None = None


@dataclass(frozen=True)
class TrainedOn:
    """sets: those of the run and of the encoders that it started from; unknown: why there may be more."""

    sets: tuple[TrainedSet, ...] = ()
    unknown: tuple[str, ...] = ()

    def __add__(self, other: TrainedOn) -> TrainedOn:
        return TrainedOn(self.sets + other.sets, self.unknown + other.unknown)

    def to_dict(self) -> dict[str, Any]:
        """What provenance.json holds under `trained_on`."""
        return {"sets": [each.facts for each in self.sets], "unknown": list(self.unknown)}

    def write(self, folder: Path) -> None:
        arrays = {
            f"{k}.{name}": array
            for k, each in enumerate(self.sets)
            for name, array in (("patients", each.patients), ("recordings", each.recordings))
            if array is not None
        }
        if arrays:
            save_file(arrays, folder / TRAINED_ON)

    @classmethod
    def read(cls, parts: VerifiedExport) -> TrainedOn | None:
        """Of an export as it was checked; None of one from before this was written down.

        Raises UserError where what it says cannot be read.
        """
        facts = parts.json(PROVENANCE).get("trained_on")
        if facts is None:
            return None
        try:
            arrays = load_numbers(parts.content[TRAINED_ON]) if TRAINED_ON in parts.content else {}
            sets = tuple(
                _judged(TrainedSet(dict(each), arrays.get(f"{k}.patients"), arrays.get(f"{k}.recordings")))
                for k, each in enumerate(facts["sets"])
            )
            return cls(sets, tuple(map(str, facts["unknown"])))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise parts.wrong(TRAINED_ON, f"does not fit {PROVENANCE} ({error})") from None


def _judged(each: TrainedSet) -> TrainedSet:
    """A set out of somebody's export, when it says what an evaluation asks it for. Raises ValueError, TypeError,
    KeyError or AttributeError."""
    facts, arrays = each.facts, (each.patients, each.recordings)
    folds, split = facts["folds"], facts["split"]
    words = [facts["fingerprint"], *([] if split is None else [split["split"], split["salt"]])]
    numbers = [*([] if folds is None else folds), *([] if split is None else split["fractions"])]
    if any(array is not None for array in arrays):
        words.append(facts["source"])
        numbers.append(facts["salted"])
    if not all(isinstance(word, str) for word in words):
        raise ValueError("a name is no text")
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("a fold, a fraction or `salted` is no number")
    if not all(array is None or (array.dtype == np.int64 and array.ndim == 1) for array in arrays):
        raise ValueError("its digests are no lists of int64")
    return each


def chosen(folds: Sequence[int] | None, split: SplitRule | None) -> dict[str, Any]:
    """How records were selected, as facts."""
    return {"folds": None if folds is None else list(folds), "split": None if split is None else asdict(split)}


def trained_set(shard_set: ShardSet, rows: np.ndarray, choice: Mapping[str, Any]) -> TrainedSet:
    """The facts and digests of these rows, selected by `choice` (`chosen`)."""
    patients = patient_digests(shard_set, rows)
    facts = {
        "fingerprint": shard_set.fingerprint,
        "source": source_name(shard_set),
        "salted": is_salted(shard_set),
        **choice,
        "records": len(rows),
        "patients": int(np.unique(patients).size),
    }
    recordings = recording_digests(shard_set, rows)
    return TrainedSet(facts, np.unique(patients[patients != 0]), np.unique(recordings[recordings != 0]))


def source_name(shard_set: ShardSet) -> str:
    return str(shard_set.manifest["source"].get("name"))


def is_salted(shard_set: ShardSet) -> bool:
    return bool(shard_set.manifest["source"].get("options", {}).get("salted", False))


def patient_digests(shard_set: ShardSet, rows: np.ndarray) -> np.ndarray:
    """int64 (n,) of hashed patient ids, which the index holds; 0 for a record without one."""
    column = shard_set.index.column("patient").take(rows).combine_chunks().dictionary_encode()
    digests = [_digest(name.encode()) if name else 0 for name in column.dictionary.to_pylist()]
    return np.array(digests, dtype=np.int64)[column.indices.to_numpy()]


def recording_digests(shard_set: ShardSet, rows: np.ndarray) -> np.ndarray:
    """int64 (n,): equal where the coded signals are equal; 0 for a silent one, which is like every other silent one.

    The index knows it: nothing is read. Sets of another rate or length code the same recording otherwise.
    """
    size, crc32 = shard_set.size[rows].astype(np.int64), shard_set.crc32[rows].astype(np.int64)
    return np.where(size * _SILENT < 12 * shard_set.spec.samples, 0, size << 32 | crc32)


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=b"trained on").digest(), "little", signed=True)


def _wherever(place: Any) -> Any:
    """A folder by its name alone: an export does not say where it lay, and whoever reads one has it elsewhere."""
    return f"./{Path(place).name}" if isinstance(place, str) and Path(place).is_absolute() else place


def run_word(config: dict[str, Any], training: Any) -> str:
    """A word for a training run, the same for each of its steps: its configuration and the records it selected.

    training: as provenance.json says it; "" where that is not enough.
    """
    if not isinstance(training, dict) or not training.get("shards_fingerprint"):
        return ""
    values = {**config, "training": {**config.get("training", {}), "steps": None, "epochs": None}}
    if isinstance(text := values.get("text"), dict):
        values["text"] = {**text, "encoder": _wherever(text.get("encoder"))}
    if "init_from" in values:
        values["init_from"] = _wherever(values["init_from"])
    content = [values, training["shards_fingerprint"], training.get("selection_fingerprint")]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
