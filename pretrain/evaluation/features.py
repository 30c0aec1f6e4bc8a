"""A set embedded once, for every evaluation of the same encoder on the same records: what was computed is kept.

FOLDER.features/KEY/     beside the shard set FOLDER; where nothing can be written there, in CARDIALIGN_CACHE/features
    rows.npy             int64 (n,): the rows of the set
    embedding.npy        float32 (n, e): unit vectors
    features.npy         float32 (n, F): pooled but not projected, where they were asked for
    digests.json         what decided these numbers (KEY is its digest), and the sha256 of the files above

What is kept is verified when it is read; what does not fit is computed again. All of it may be deleted at any time.
Legend: n records, e embedding_dim, F width of the features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.export.loaded import LoadedEncoder
from cardialign.pretrain.run.integrity import DIGESTS, file_digests

log = logging.getLogger(__name__)

FEATURES_VERSION = 1
"""To be raised when the same weights come to give other numbers."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EmbeddedSet:
    """rows int64 (n,) of a shard set, embedding float32 (n, e) unit rows, features float32 (n, F) when asked for."""

    rows: np.ndarray
    embedding: np.ndarray
    features: np.ndarray | None = None


@dataclass(frozen=True)
class EmbedOptions:
    """How a set is embedded.

    first_seconds  only so much of each signal is shown to the encoder, the rest is masked; None = all of it
    with_features  the features too: of the shipped sizes 3 (tiny) to 24 (base) times as large as the embedding
    """

    first_seconds: float | None = None
    batch_size: int = 64
    threads: int = 2
    with_features: bool = False


def embed_set(
    encoders: Sequence[LoadedEncoder],
    shard_set: ShardSet,
    rows: np.ndarray,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> list[EmbeddedSet]:
    """The given rows through each encoder, from what is kept beside the set where it is there; one pass for the rest.

    progress(done, total) in records. The numbers are those of a fresh computation, bit for bit.
    Raises UserError when the records do not fit an encoder's signal contract, DataError when a record is damaged.
    """
    options = options or EmbedOptions()
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    for encoder in encoders:
        check_contract(encoder, shard_set)
    facts = [embedding_facts(encoder, shard_set, rows, options) for encoder in encoders]
    folders = list(places_beside(shard_set))
    found = [_kept(folders, each, rows, options) for each in facts]
    missing = [k for k, each in enumerate(found) if each is None]
    if missing:
        fresh = _embed([encoders[k] for k in missing], shard_set, rows, options, progress)
        for k, embedded in zip(missing, fresh, strict=True):
            _keep(folders, facts[k], embedded)
            found[k] = embedded
    elif progress is not None:
        progress(len(rows), len(rows))
    return [each for each in found if each is not None]


def check_contract(encoder: LoadedEncoder, shard_set: ShardSet) -> None:
    """Raises UserError when the set has another sampling rate or length than the encoder was trained on."""
    has, wants = shard_set.spec, encoder.contract
    if has.sampling_rate != wants.sampling_rate or has.samples != wants.samples:
        raise UserError(
            f"{shard_set.path} holds {has.seconds:g} s at {has.sampling_rate:g} Hz, "
            f"the encoder was trained on {wants.seconds:g} s at {wants.sampling_rate:g} Hz",
            f"build shards with sampling rate {wants.sampling_rate:g} and {wants.seconds:g} seconds "
            "from the same source",
        )


def _samples_shown(shard_set: ShardSet, options: EmbedOptions) -> int:
    spec = shard_set.spec
    if options.first_seconds is None:
        return spec.samples
    return min(spec.samples, round(options.first_seconds * spec.sampling_rate))


def _embed(
    encoders: Sequence[LoadedEncoder],
    shard_set: ShardSet,
    rows: np.ndarray,
    options: EmbedOptions,
    progress: Progress | None,
) -> list[EmbeddedSet]:
    """Each record is read once for all encoders."""
    shown = _samples_shown(shard_set, options)
    parts: list[list[tuple[np.ndarray, np.ndarray | None]]] = [[] for _ in encoders]
    done = 0
    for batch in iterate_rows(shard_set, rows, options.batch_size, options.threads):
        batch.signal[..., shown:] = 0.0
        valid = np.minimum(batch.valid_samples, shown)
        for encoder, own in zip(encoders, parts, strict=True):
            output = encoder.encode(batch.signal, batch.lead_mask, valid)
            features = output.features.float().cpu().numpy() if options.with_features else None
            own.append((output.embedding.float().cpu().numpy(), features))
        done += len(batch.rows)
        if progress is not None:
            progress(done, len(rows))
    assert done == len(rows), f"{done} of {len(rows)} records were embedded"
    out = []
    for own in parts:
        pooled = [features for _, features in own if features is not None]
        features = np.concatenate(pooled) if pooled else None
        out.append(EmbeddedSet(rows, np.concatenate([embedding for embedding, _ in own]), features))
    return out


def embedding_facts(
    encoder: LoadedEncoder, shard_set: ShardSet, rows: np.ndarray, options: EmbedOptions
) -> dict[str, Any]:
    """Everything that decides the numbers, down to their last bit.

    The encoder is known by its weights: the word that stands for the digest of one that was never exported says little.
    """
    made = encoder.config.encoder.model_dump(mode="json"), encoder.contract.to_dict()
    digest = hashlib.sha256(json.dumps(made).encode())
    digest.update(save({name: tensor.cpu().contiguous() for name, tensor in encoder.ecg.state_dict().items()}))
    return {
        "version": FEATURES_VERSION,
        "encoder": digest.hexdigest(),
        "selection": hashlib.sha256(shard_set.fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest(),
        "samples": _samples_shown(shard_set, options),
        "batch_size": options.batch_size,
        "device": encoder.device.type,
        "torch": torch.__version__,
    }


def places_beside(shard_set: ShardSet) -> Iterator[Path]:
    """Where features of the set, and what else is known of it, may be kept, best place first.

    A set behind a URL lies in CARDIALIGN_CACHE itself, and what is beside it too.
    """
    path = shard_set.path.absolute()
    yield path.with_name(f"{path.name}.features")
    yield ShardCache.from_environment().folder / "features"


@contextlib.contextmanager
def scratch_beside(shard_set: ShardSet) -> Iterator[Path]:
    """A new folder where whoever sees the set can read; gone afterwards. Raises UserError when none can be made."""
    reasons = []
    for place in places_beside(shard_set):
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".work-", dir=place.absolute()))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
            continue
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    raise UserError(
        f"nothing can be written beside {shard_set.path}: {'; '.join(reasons)}",
        "name a folder that can be written in CARDIALIGN_CACHE",
    )


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(
    folders: Sequence[Path], facts: dict[str, Any], rows: np.ndarray, options: EmbedOptions
) -> EmbeddedSet | None:
    for folder in folders:
        path = folder / _name(facts)
        try:
            if not (path / DIGESTS).is_file():
                continue
            embedded = _read(path, facts, rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("features=%s action=ignore reason=%s", path, error)
            continue
        if options.with_features and embedded.features is None:
            continue
        log.info("features=%s action=reuse records=%d", path, len(rows))
        return embedded
    return None


def _read(path: Path, facts: dict[str, Any], rows: np.ndarray) -> EmbeddedSet:
    """Raises ValueError when anything is not as it was written, OSError, KeyError or TypeError for a damaged list."""
    listed = json.loads((path / DIGESTS).read_text(encoding="utf-8"))
    if listed["facts"] != facts or listed["files"] != file_digests(path):
        raise ValueError("its files are not those that were written")
    arrays = {name: np.load(path / name, mmap_mode="r", allow_pickle=False) for name in listed["files"]}
    embedded = EmbeddedSet(arrays["rows.npy"], arrays["embedding.npy"], arrays.get("features.npy"))
    if not np.array_equal(embedded.rows, rows):
        raise ValueError("it holds other rows")
    return embedded


def _keep(folders: Sequence[Path], facts: dict[str, Any], embedded: EmbeddedSet) -> None:
    """In the first folder that can be written: whole or not at all. Nothing is lost when none can."""
    reasons = []
    for folder in folders:
        path = folder / _name(facts)
        temporary = folder / f".{path.name}.{os.getpid()}"
        try:
            temporary.mkdir(parents=True)
            for name in ("rows", "embedding", "features"):
                array = getattr(embedded, name)
                if array is not None:
                    np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            listed = {"facts": facts, "files": file_digests(temporary)}
            (temporary / DIGESTS).write_text(json.dumps(listed, indent=1), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)  # damaged, or without features
            temporary.rename(path)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
        else:
            log.info("features=%s action=keep records=%d", path, len(embedded.rows))
            return
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    log.warning("features action=not-kept reason=%s", "; ".join(reasons))
