"""The ways into an exported encoder, each held against the ten ECGs that lie in it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import install
from cardialign.data_shards.files import read_bytes
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shown import shown
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.doors.golden import REFUSED, Golden, read_golden
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run.archive import pickled_parts
from cardialign.pretrain.run.integrity import CONTRACT, ONNX, PROGRAM, PROVENANCE, VerifiedExport, read_export

ONNX_DOOR = "ONNX"
TOLERANCE = 1e-5
"""Of each number of an embedding, a unit vector."""


@dataclass(frozen=True)
class Door:
    """name; closed: why it cannot be opened here, "" when it was; wrong: what is not as it must be, "" when all is.

    difference: the largest of any number to what was stored, of `records` records; None where nothing was compared.
    """

    name: str
    closed: str = ""
    wrong: str = ""
    difference: float | None = None
    records: int = 0


class Asked(NamedTuple):
    """An export as it was checked, its contract and its ten ECGs."""

    parts: VerifiedExport
    contract: SignalContract
    golden: Golden

    def recorded(self, k: int) -> tuple[list[str], np.ndarray]:
        """Of one of the ten, the leads that were recorded and their signal (1, L, valid samples)."""
        there = self.golden.lead_mask[k]
        leads = [lead for lead, is_there in zip(STANDARD_LEADS, there, strict=True) if is_there]
        return leads, self.golden.signal[k : k + 1, there, : self.golden.valid_samples[k]]

    def or_refused(self, embed: Callable[[int], np.ndarray], k: int) -> np.ndarray:
        """One row (1, e); NaN where it is refused."""
        try:
            return embed(k)
        except UserError:
            return np.full((1, self.contract.embedding_dim), np.nan)


class ClosedError(Exception):
    """A door that cannot be opened on this machine, and why."""


Way = Callable[[Asked], np.ndarray]
"""(10, e) of the ten ECGs by one way in: NaN in the rows that it refuses, infinity where it cannot be asked."""


def check_doors(folder: Path, more: Mapping[str, Way] | None = None) -> tuple[str, list[Door]]:
    """The digest of an exported encoder, and each of its doors; more: those of floors above, by name.

    Raises UserError for a folder that is not as it was written, and for one that has no ECGs to be held against.
    """
    parts = read_export(folder)
    contract = SignalContract.from_dict(parts.json(CONTRACT))
    asked = Asked(parts, contract, read_golden(parts, contract))
    with _without_remarks():
        return parts.digest, [_tried(name, embed, asked) for name, embed in {**DOORS, **(more or {})}.items()]


def check_door(folder: Path, name: str) -> Door:
    """One of `DOORS`, tried as `check_doors` does."""
    parts = read_export(folder)
    contract = SignalContract.from_dict(parts.json(CONTRACT))
    with _without_remarks():
        return _tried(name, DOORS[name], Asked(parts, contract, read_golden(parts, contract)))


def _tried(name: str, embed: Way, asked: Asked) -> Door:
    try:
        found = embed(asked)
    except ClosedError as why:
        return Door(name, closed=str(why))
    stored = asked.golden.embedding
    if found.shape != stored.shape:
        return Door(name, wrong=f"gives {found.shape[1:]} numbers for an ECG, not {stored.shape[1:]}")
    asked_of = ~np.isposinf(found).all(axis=1)
    sound = asked_of & (np.arange(len(stored)) != REFUSED)
    wrong = [] if np.isnan(found[REFUSED]).all() else ["takes a record with a sample that is no number"]
    if not np.isfinite(found[sound]).all():
        return Door(name, wrong="; ".join([*wrong, "gives no numbers for an ECG, or refuses it"]))
    difference = float(np.abs(found[sound] - stored[sound]).max())
    if not difference <= TOLERANCE:
        wrong.append(f"differs by {difference:.2g}, more than {TOLERANCE:g}")
    return Door(name, wrong="; ".join(wrong), difference=difference, records=int(sound.sum()))


def _library(asked: Asked) -> np.ndarray:
    encoder, golden = load_encoder(asked.parts.folder), asked.golden
    ages = None if golden.age is None else [None if np.isnan(each) else float(each) for each in golden.age]

    def embed(k: int) -> np.ndarray:
        rows = slice(k, k + 1)
        return encoder.embed(
            golden.signal[rows],
            sampling_rate=asked.contract.sampling_rate,
            lead_mask=golden.lead_mask[rows],
            valid_samples=golden.valid_samples[rows],
            age=None if ages is None else ages[rows],
        )

    return np.concatenate([asked.or_refused(embed, k) for k in range(len(golden.signal))])


def _program(asked: Asked) -> np.ndarray:
    if PROGRAM not in asked.parts.listed:
        raise ClosedError(f"the folder has no {PROGRAM}: it was exported without")
    written = asked.parts.json(PROVENANCE).get("versions")
    by = written.get("torch") if isinstance(written, dict) else None
    content = _content(asked, PROGRAM)
    if pickled_parts(io.BytesIO(content)):
        raise asked.parts.wrong(PROGRAM, "content changed while it was looked at")
    try:
        program = torch.export.load(io.BytesIO(content)).module()
        with torch.inference_mode():
            found: np.ndarray = program(*asked.golden.given(asked.contract.samples)).float().numpy()
    except Exception as error:  # whatever torch says of a program that it cannot read or run
        line = shown((str(error).strip().splitlines() or [""])[0])[:200]
        if by != torch.__version__:
            raise ClosedError(
                f"torch {torch.__version__} cannot run it, torch {shown(str(by))[:40]} wrote it: {line}"
            ) from None
        raise UserError(
            f"{asked.parts.folder / PROGRAM} cannot be run: {type(error).__name__}: {line}", "export the encoder again"
        ) from None
    return found


def _content(asked: Asked, name: str) -> bytes:
    """Of a program: what is judged is what is loaded, whoever writes meanwhile."""
    content = read_bytes(asked.parts.folder / name)
    if hashlib.sha256(content).hexdigest() != asked.parts.listed[name]:
        raise asked.parts.wrong(name, "content changed while it was looked at")
    return content


def _onnx(asked: Asked) -> np.ndarray:
    if ONNX not in asked.parts.listed:
        raise ClosedError(f"the folder has no {ONNX}: `cardialign export --onnx` writes one")
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ClosedError(f"onnxruntime is not installed: {install('onnx')}") from None
    content, names = _content(asked, ONNX), ("signal", "lead_mask", "valid_samples", "age")
    given = [each.numpy() for each in asked.golden.given(asked.contract.samples)]
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = runtime.InferenceSession(content, quiet, providers=["CPUExecutionProvider"])
        found: np.ndarray = session.run(None, dict(zip(names, given, strict=False)))[0]
    except Exception as error:  # onnxruntime has a class of its own for every failure
        line = shown((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
        raise UserError(f"{asked.parts.folder / ONNX} cannot be run: {line}", "export the encoder again") from None
    return found


def _scikit_learn(asked: Asked) -> np.ndarray:
    if importlib.util.find_spec("sklearn") is None:
        raise ClosedError("scikit-learn is not installed")
    from cardialign.pretrain.export.embedder import EcgEmbedder

    golden = asked.golden
    embedder = EcgEmbedder(asked.parts.folder, sampling_rate=float(asked.contract.sampling_rate))

    def embed(k: int) -> np.ndarray:
        leads, signal = asked.recorded(k)
        embedder.set_params(leads=leads, allow=() if leads == list(STANDARD_LEADS) else ("allow_missing_leads",))
        return embedder.transform(signal)

    found = []
    for k in range(len(golden.signal)):
        if golden.age is not None and not np.isnan(golden.age[k]):
            found.append(np.full((1, asked.contract.embedding_dim), np.inf))  # it is given no age
        else:
            found.append(asked.or_refused(embed, k))
    return np.concatenate(found)


def _transformers(asked: Asked) -> np.ndarray:
    if importlib.util.find_spec("transformers") is None:
        raise ClosedError("transformers is not installed")
    from cardialign.pretrain.export.doors.hugging_face import CardialignModel

    golden, model = asked.golden, CardialignModel.from_pretrained(asked.parts.folder)

    def embed(k: int) -> np.ndarray:
        rows, age = slice(k, k + 1), {}
        if golden.age is not None and not np.isnan(golden.age[k]):
            age = {"age": float(golden.age[k])}
        with torch.inference_mode():
            found = model(
                torch.from_numpy(golden.signal[rows]),
                sampling_rate=asked.contract.sampling_rate,
                lead_mask=golden.lead_mask[rows],
                valid_samples=golden.valid_samples[rows],
                **age,
            )
        embedding: np.ndarray = found.pooler_output.numpy()
        return embedding

    return np.concatenate([asked.or_refused(embed, k) for k in range(len(golden.signal))])


DOORS: dict[str, Way] = {
    "library": _library,
    "torch.export program": _program,
    ONNX_DOOR: _onnx,
    "scikit-learn": _scikit_learn,
    "transformers": _transformers,
}


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """In this block the library does not remark on missing leads, a flat one and unknown ages: it is given them."""
    logger = logging.getLogger("cardialign.pretrain.export")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
