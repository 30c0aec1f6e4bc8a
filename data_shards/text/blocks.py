"""The long part of a text bank: embeddings and tokens of every distinct report, in blocks that survive a kill.

Each block is one file that appears by rename when it is whole; a build that starts again takes the blocks it finds and
goes on after them. The folder of blocks belongs to one bank key, so blocks of another encoder, style, cleaning or shard
set are never met.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cardialign.data_shards.array_files import load_array, load_arrays
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import UNREADABLE_ARRAY, commit_file
from cardialign.data_shards.text.similarity import unit

log = logging.getLogger(__name__)

BLOCK = 4096
"""Reports per block: a minute of a small encoder on a core is the most that a kill can cost."""

ALIKE = 0.1
"""Share of the reports that may be the same to the encoder before it is told."""

Progress = Callable[[int, int], None]


class TextEncoderLike(Protocol):
    """A frozen text encoder as the bank sees it; `cardialign.pretrain.text.encoder` implements it."""

    fingerprint: str
    max_tokens: int
    dim: int

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 (n, max_tokens), padded at the end; lengths (n,)."""
        ...

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 (n, dim), pooled, L2-normalised."""
        ...

    def describe(self) -> dict[str, Any]:
        """Id, digest of the weights, pooling and the like, JSON-able."""
        ...


@dataclass(frozen=True)
class Block:
    """Reports start..stop: embeddings float16 (n, d), token_ids int32 (n, max_tokens), lengths int32 (n,), total
    float64 (d,) = sum of count x unit row."""

    embeddings: np.ndarray
    token_ids: np.ndarray
    lengths: np.ndarray
    total: np.ndarray


def make_blocks(
    folder: Path,
    encoder: TextEncoderLike,
    texts: list[str],
    counts: np.ndarray,
    *,
    batch_size: int,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> None:
    """Embed what is not there yet. progress(reports done, reports).

    Raises DataError when the encoder's output is not what it promises.
    """
    kept = 0
    for start in range(0, len(texts), block):
        stop = min(start + block, len(texts))
        path = block_path(folder, start, stop)
        if path.exists() and _read(path, encoder, stop - start) is not None:
            kept += stop - start
        else:
            _write(path, _embed(encoder, texts, counts, start, stop, batch_size, progress))
        if progress is not None:
            progress(stop, len(texts))
    if kept:
        log.info("text_bank resumed=%s reports_kept=%d of=%d", folder.name, kept, len(texts))


def assemble(folder: Path, out: Path, encoder: TextEncoderLike, counts: np.ndarray, block: int = BLOCK) -> None:
    """All blocks as embeddings.npy, token_ids.npy, lengths.npy and mean.npy (over records: a frequent report weighs
    more) in `out`."""
    reports = len(counts)
    embeddings = np.lib.format.open_memmap(
        out / "embeddings.npy", mode="w+", dtype=np.float16, shape=(reports, encoder.dim)
    )
    token_ids = np.lib.format.open_memmap(
        out / "token_ids.npy", mode="w+", dtype=np.int32, shape=(reports, encoder.max_tokens)
    )
    lengths = np.zeros(reports, dtype=np.int32)
    total = np.zeros(encoder.dim, dtype=np.float64)
    for start in range(0, reports, block):
        stop = min(start + block, reports)
        path = block_path(folder, start, stop)
        part = _read(path, encoder, stop - start)
        if part is None:
            raise DataError(
                f"block {path} of the text bank vanished or changed while the bank was put together",
                "run the same build again",
            )
        embeddings[start:stop], token_ids[start:stop], lengths[start:stop] = (
            part.embeddings,
            part.token_ids,
            part.lengths,
        )
        total += part.total
    embeddings.flush()
    token_ids.flush()
    np.save(out / "lengths.npy", lengths)
    np.save(out / "mean.npy", (total / counts.sum()).astype(np.float32))


def check_told_apart(folder: Path, encoder: TextEncoderLike) -> None:
    """What the encoder cannot read of reports is told; raises DataError where it reads all of several as the same.

    folder: with the arrays that `assemble` made.
    """
    ids = load_array(folder / "token_ids.npy", mapped=True)
    lengths = load_array(folder / "lengths.npy")
    cut = int((lengths >= encoder.max_tokens).sum())
    if cut:
        log.warning(
            "text_bank reports=%d of=%d remark=they fill all %d tokens, what they say behind that is not read; "
            "raise text.max_tokens", cut, len(ids), encoder.max_tokens,
        )  # fmt: skip
    different = len({hash(row.tobytes()) for row in ids})
    if different == 1 < len(ids):
        why = f"they begin with the same {encoder.max_tokens} tokens" if cut else "it does not know their words"
        raise DataError(
            f"all {len(ids)} distinct reports are the same to the text encoder: {why}",
            "raise text.max_tokens" if cut else "choose a text encoder of the language and letters of the reports",
        )
    if (len(ids) - different) > ALIKE * len(ids):
        log.warning(
            "text_bank reports=%d of=%d remark=to the text encoder each of them is the same as another: it does not "
            "know their words, or they differ behind the last token", len(ids) - different, len(ids),
        )  # fmt: skip


def block_path(folder: Path, start: int, stop: int) -> Path:
    return folder / f"reports-{start:08d}-{stop:08d}.npz"


def _embed(
    encoder: TextEncoderLike,
    texts: list[str],
    counts: np.ndarray,
    start: int,
    stop: int,
    batch_size: int,
    progress: Progress | None,
) -> Block:
    parts = []
    total = np.zeros(encoder.dim, dtype=np.float64)
    for at in range(start, stop, batch_size):
        some = texts[at : min(at + batch_size, stop)]
        vectors = np.asarray(encoder.embed(some), dtype=np.float32)
        ids, sizes = encoder.tokenize(some)
        _check_output(encoder, some, vectors, np.asarray(ids), np.asarray(sizes))
        vectors = unit(vectors)
        total += counts[at : at + len(some)].astype(np.float64) @ vectors.astype(np.float64)
        parts.append((vectors.astype(np.float16), np.asarray(ids, dtype=np.int32), np.asarray(sizes, dtype=np.int32)))
        if progress is not None:
            progress(at + len(some), len(texts))
    embeddings, token_ids, lengths = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Block(embeddings, token_ids, lengths, total)


def _write(path: Path, block: Block) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add .npz to it
            np.savez(file, **vars(block))

    commit_file(path, write)


def _read(path: Path, encoder: TextEncoderLike, reports: int) -> Block | None:
    """The block, None when it is missing, damaged (every array carries a crc32) or of another shape: it is then made
    again."""
    try:
        block = Block(**load_arrays(path, (each.name for each in fields(Block))))
    except UNREADABLE_ARRAY as error:
        log.warning("text_bank block=%s unusable reason=%s", path.name, error)
        return None
    wanted = ((reports, encoder.dim), (reports, encoder.max_tokens), (reports,), (encoder.dim,))
    return (
        block
        if (block.embeddings.shape, block.token_ids.shape, block.lengths.shape, block.total.shape) == wanted
        else None
    )


def _check_output(
    encoder: TextEncoderLike, texts: list[str], vectors: np.ndarray, ids: np.ndarray, sizes: np.ndarray
) -> None:
    n = len(texts)
    remedy = "check the text encoder (and that its weights are the right ones)"
    if vectors.shape != (n, encoder.dim) or ids.shape != (n, encoder.max_tokens) or sizes.shape != (n,):
        raise DataError(
            f"text encoder {encoder.fingerprint}: for {n} reports it gave embeddings {vectors.shape}, tokens "
            f"{ids.shape}, lengths {sizes.shape}; "
            f"expected {(n, encoder.dim)}, {(n, encoder.max_tokens)}, {(n,)}",
            remedy,
        )
    bad = ~np.isfinite(vectors).all(axis=1) | ~(np.abs(vectors).max(axis=1) > 0)
    if bad.any():
        raise DataError(
            f"text encoder {encoder.fingerprint}: no finite embedding for the report {texts[int(bad.argmax())]!r}",
            remedy,
        )
