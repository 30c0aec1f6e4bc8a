"""A set embedded once, for every evaluation of the same encoder on the same records: what was computed is kept.

FOLDER.features/KEY/     beside the shard set FOLDER; where nothing can be written there, in CARDIALIGN_CACHE/features
    rows.npy             int64 (n,): the rows of the set
    embedding.npy        float32 (n, e): unit vectors; (n, W, e) of W pieces, NaN of one that is no whole piece
    features.npy         float32 (n, F) or (n, W, F): pooled but not projected, where they were asked for
    digests.json         what decided these numbers (KEY is its digest), and the sha256 of the files above

What is kept is verified when it is read; what does not fit is computed again. All of it may be deleted at any time.
Legend: n records, e embedding_dim, F width of the features, W windows.
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
from typing import Any, TypeVar

import numpy as np
import torch

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.evaluation.windows import is_used, starts
from cardialign.pretrain.export.ages import aged
from cardialign.pretrain.export.usable import Reader, UsableEncoder
from cardialign.pretrain.run.integrity import DIGESTS, file_digests

log = logging.getLogger(__name__)

FEATURES_VERSION = 1
"""To be raised when the same weights come to give other numbers."""

Progress = Callable[[int, int], None]
Made = TypeVar("Made")


@dataclass(frozen=True)
class EmbeddedSet:
    """rows int64 (n,) of a shard set, embedding float32 (n, e) unit rows, features float32 (n, F) when asked for.

    Both have W pieces in the middle where records were cut, (n, W, e), NaN for one that is none (`windows.is_used`).
    """

    rows: np.ndarray
    embedding: np.ndarray
    features: np.ndarray | None = None


@dataclass(frozen=True)
class EmbedOptions:
    """How a set is embedded.

    first_seconds  only so much of each signal is shown to the encoder, the rest is masked; None = all of it
    with_features  the features too: of the shipped sizes 8 (tiny) to 17 (small) times as large as the embedding
    window         seconds of the pieces that a record is cut into; None = it is embedded whole
    normalisation  what is done to the signal before the encoder sees it (`encoders.blocks.normalise`); "none": nothing
    """

    first_seconds: float | None = None
    batch_size: int = 64
    threads: int = 2
    with_features: bool = False
    window: float | None = None
    normalisation: str = "none"


def embed_set(
    encoders: Sequence[UsableEncoder],
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
    readers = [reader_of(encoder.reader, shard_set) for encoder in encoders]
    facts = [embedding_facts(encoder, shard_set, rows, options) for encoder in encoders]
    folders = list(places_beside(shard_set))
    found = [_kept(folders, each, rows, options) for each in facts]
    missing = [k for k, each in enumerate(found) if each is None]
    if missing:
        fresh = read_set([readers[k] for k in missing], shard_set, rows, options, progress)
        for k, embedded in zip(missing, fresh, strict=True):
            _keep(folders, facts[k], embedded)
            found[k] = embedded
    elif progress is not None:
        progress(len(rows), len(rows))
    return [each for each in found if each is not None]


def reader_of(make: Callable[[SignalSpec], Made], shard_set: ShardSet) -> Made:
    """What `UsableEncoder.reader`, `token_reader` or `gap_reader` makes for a set; its UserError names the set, too."""
    try:
        return make(shard_set.spec)
    except UserError as error:
        raise UserError(f"{shard_set.path}: {error.problem}", error.remedy) from None


def _samples_shown(shard_set: ShardSet, options: EmbedOptions) -> int:
    spec = shard_set.spec
    if options.first_seconds is None:
        return spec.samples
    return min(spec.samples, round(options.first_seconds * spec.sampling_rate))


def read_set(
    readers: Sequence[Reader],
    shard_set: ShardSet,
    rows: np.ndarray,
    options: EmbedOptions,
    progress: Progress | None,
) -> list[EmbeddedSet]:
    """The given rows through each reader, and nothing of it is kept. Each record is read once for all readers."""
    shown = _samples_shown(shard_set, options)
    parts: list[list[tuple[np.ndarray, np.ndarray | None]]] = [[] for _ in readers]
    done = 0
    for batch in iterate_rows(shard_set, rows, options.batch_size, options.threads):
        batch.signal[..., shown:] = 0.0
        valid = np.minimum(batch.valid_samples, shown)
        signal = batch.signal
        if options.normalisation != "none":
            mv, leads, recorded = map(torch.from_numpy, (signal, batch.lead_mask, valid.astype(np.int64)))
            signal = normalise(mv, leads, recorded, options.normalisation).numpy()
        for reader, own in zip(readers, parts, strict=True):
            own.append(_read_batch(aged(reader, batch.age_years), signal, batch.lead_mask, valid, shard_set, options))
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


def _read_batch(
    reader: Reader,
    signal: np.ndarray,
    lead_mask: np.ndarray,
    valid: np.ndarray,
    shard_set: ShardSet,
    options: EmbedOptions,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embedding (b, e) or (b, W, e), and the features likewise when they are asked for."""

    def read(piece: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        output = reader(piece, lead_mask, inside)
        features = output.features.float().cpu().numpy() if options.with_features else None
        return output.embedding.float().cpu().numpy(), features

    if options.window is None:
        return read(signal, valid)
    length = min(signal.shape[-1], max(1, round(options.window * shard_set.spec.sampling_rate)))
    places = starts(_samples_shown(shard_set, options), length)
    found = []
    for start in places:
        inside = (valid - start).clip(1, length)  # what is no whole piece is struck out below
        found.append(read(np.ascontiguousarray(signal[..., start : start + length]), inside))
    unused = ~np.stack([is_used(valid, start, length) for start in places], axis=1)
    embedding = np.stack([each for each, _ in found], axis=1)
    pooled = [features for _, features in found if features is not None]
    embedding[unused] = np.nan
    if not pooled:
        return embedding, None
    features = np.stack(pooled, axis=1)
    features[unused] = np.nan
    return embedding, features


def embedding_facts(
    encoder: UsableEncoder, shard_set: ShardSet, rows: np.ndarray, options: EmbedOptions
) -> dict[str, Any]:
    """Everything that decides the numbers, down to their last bit. What is not asked for is not named."""
    facts = {
        "version": FEATURES_VERSION,
        "encoder": encoder.computing_digest(),
        "selection": hashlib.sha256(shard_set.fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest(),
        "samples": _samples_shown(shard_set, options),
        "batch_size": options.batch_size,
        "device": encoder.device.type,
        "torch": torch.__version__,
    }
    if options.window is not None:
        facts |= {"window": options.window, "pieces": "whole"}
    if options.normalisation != "none":
        facts["normalisation"] = options.normalisation
    return facts


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
    listed = parse_json(read_bytes(path / DIGESTS))
    if listed["facts"] != facts or listed["files"] != file_digests(path):
        raise ValueError("its files are not those that were written")
    arrays = {name: load_array(path / name, mapped=True) for name in listed["files"]}
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
