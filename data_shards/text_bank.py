"""The text bank: everything a run needs from its reports, computed once per distinct report, kept beside the shards and memory-mapped.

<shards>/text_bank/<key>/: embeddings.npy, mean.npy, token_ids.npy, lengths.npy, statement_indptr.npy, statement_ids.npy, statements.json, bank.json.
The key follows from the encoder, the report cleaning, the shard set and the style of joining statements, so a bank is never stale: another encoder
is another folder. Rows are those of `reports.parquet`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_shards.bank_files import add_digests
from data_shards.build_shard import disk_error
from data_shards.commit_set import REPORTS
from data_shards.errors import DataError, UsageError
from data_shards.remote import local_folder
from data_shards.reports import CLEANING_VERSION, STYLES, join_statements
from data_shards.shard_set import ShardSet, read_manifest
from data_shards.shard_writer import sync_folder

log = logging.getLogger(__name__)
BANK_VERSION = 1
FOLDER = "text_bank"
BANK_FILE = "bank.json"
_ARRAYS = ("embeddings", "mean", "token_ids", "lengths", "statement_indptr", "statement_ids")
_BUILD_REMEDY = "run `cardialign text-bank build` for these shards and this text encoder"


class TextEncoderLike(Protocol):
    """A frozen text encoder as the bank sees it; `pretrain.model.text` implements it."""

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


class TextBank:
    """R distinct reports, width d. Open with `TextBank.open(shards)`; arrays are memory-mapped and must not be written to.

    embeddings float16 (R, d), unit rows; mean float32 (d,), over records (a frequent report weighs more); token_ids int32 (R, max_tokens);
    lengths int32 (R,); description: bank.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description: dict[str, Any] = _read_description(path)
        try:
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"text bank {path} cannot be read: {error}", f"delete the folder and {_BUILD_REMEDY}") from error
        self.embeddings: np.ndarray = arrays["embeddings"]
        self.mean: np.ndarray = np.array(arrays["mean"])
        self.token_ids: np.ndarray = arrays["token_ids"]
        self.lengths: np.ndarray = np.array(arrays["lengths"])
        self._indptr: np.ndarray = np.array(arrays["statement_indptr"])
        self._ids: np.ndarray = np.array(arrays["statement_ids"])
        reports = self.description["reports"]
        if not (self.embeddings.shape[0] == self.token_ids.shape[0] == self.lengths.size == self._indptr.size - 1 == reports):
            raise DataError(f"text bank {path} holds arrays of different lengths", f"delete the folder and {_BUILD_REMEDY}")

    @classmethod
    def open(cls, shard_set_path: Path | str, encoder_fingerprint: str | None = None, style: str | None = None) -> TextBank:
        """The bank of this encoder (or the only one there). Raises DataError when there is none, or several and the choice is open."""
        shards = local_folder(shard_set_path)
        wanted = read_manifest(shards)["fingerprint"]
        found: list[Path] = []
        for file in sorted((shards / FOLDER).glob(f"[!.]*/{BANK_FILE}")):
            bank = _read_description(file.parent)
            if bank["shards"] != wanted or bank["cleaning_version"] != CLEANING_VERSION or bank["version"] != BANK_VERSION:
                continue
            if encoder_fingerprint in (None, bank["encoder_fingerprint"]) and style in (None, bank["style"]):
                found.append(file.parent)
        if not found:
            encoder = f" of encoder {encoder_fingerprint}" if encoder_fingerprint else ""
            raise DataError(f"{shards} has no text bank{encoder}" + (f" with style {style}" if style else ""), _BUILD_REMEDY)
        if len(found) > 1:
            raise DataError(
                f"{shards} has {len(found)} text banks: {', '.join(path.name for path in found)}", "say which encoder and style are meant"
            )
        return cls(found[0])

    def __len__(self) -> int:
        return int(self.embeddings.shape[0])

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    @property
    def max_tokens(self) -> int:
        return int(self.token_ids.shape[1])

    @property
    def statements(self) -> list[str]:
        """The distinct statements (by case-folded text); position = statement id."""
        return json.loads((self.path / "statements.json").read_text(encoding="utf-8"))

    def embedding(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d) unit vectors, as the encoder gave them (to fp16 precision)."""
        return _unit(self.embeddings[self._checked(report_ids)].astype(np.float32))

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d): unit vectors of e - mean; the zero vector where a report is the mean itself."""
        return _unit(self.embeddings[self._checked(report_ids)].astype(np.float32) - self.mean)

    def tokens(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """token ids int32 (b, max_tokens) and lengths int32 (b,)."""
        checked = self._checked(report_ids)
        return np.array(self.token_ids[checked]), self.lengths[checked]

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """CSR (indptr int64 (b + 1,), ids int32): the ascending, distinct statement ids of each report."""
        checked = self._checked(report_ids)
        starts, sizes = self._indptr[checked], np.diff(self._indptr)[checked]
        indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], sizes)
        return indptr, self._ids[np.repeat(starts, sizes) + within]

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        """int64 (b,): equal exactly when two records have the same report (letter case aside)."""
        return self._checked(report_ids)

    def _checked(self, report_ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(report_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            wrong = int(ids[(ids < 0) | (ids >= len(self))][0])
            raise DataError(
                f"report {wrong} is not in the text bank of {len(self)} reports"
                + (" (-1: a record without a report)" if wrong == -1 else ""),
                "select records with require_report=True" if wrong == -1 else _BUILD_REMEDY,
            )
        return ids


def build_text_bank(
    shard_set: ShardSet,
    encoder: TextEncoderLike,
    out: Path | None = None,
    *,
    style: str = "sentences",
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> TextBank:
    """Compute and commit the bank of a shard set (in `out`/<key>, by default <shards>/text_bank/<key>); a bank that is there is opened, not rebuilt.

    progress(reports done, reports). Raises DataError when the set has no report, when the encoder's output is not what it promises, or when the
    disk is full; UsageError for an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"unknown report style {style!r}", f"choose one of {', '.join(STYLES)}")
    statements: list[list[str]] = shard_set.reports.column("statements").to_pylist()
    if not statements:
        raise DataError(
            f"the report table {shard_set.path / REPORTS} is empty: no record of this set has a report",
            "build shards from a source with reports",
        )
    description = {
        "version": BANK_VERSION,
        "encoder": encoder.describe(),
        "encoder_fingerprint": encoder.fingerprint,
        "max_tokens": int(encoder.max_tokens),
        "dim": int(encoder.dim),
        "style": style,
        "cleaning_version": CLEANING_VERSION,
        "shards": shard_set.fingerprint,
        "reports": len(statements),
    }
    path = Path(out or shard_set.path / FOLDER) / bank_key(description)
    if (path / BANK_FILE).exists():
        log.info("text_bank path=%s reused reports=%d", path, len(statements))
        return TextBank(path)
    try:
        with _committed_folder(path) as folder:
            counts = shard_set.reports.column("count").to_numpy()
            _write_text(folder, encoder, [join_statements(each, style) for each in statements], counts, batch_size, progress)
            _write_statements(folder, statements)
            (folder / BANK_FILE).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
    log.info("text_bank path=%s built reports=%d", path, len(statements))
    return TextBank(path)


def bank_key(description: dict[str, Any]) -> str:
    """Short fingerprint of what a bank depends on: encoder, token limit, cleaning, shard set, style, format."""
    parts = ("version", "encoder_fingerprint", "max_tokens", "style", "cleaning_version", "shards")
    return hashlib.sha256(json.dumps([description[part] for part in parts]).encode()).hexdigest()[:16]


def _write_text(
    folder: Path,
    encoder: TextEncoderLike,
    texts: list[str],
    counts: np.ndarray,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Embeddings, their mean over records, tokens and lengths, batch by batch straight into the mapped files."""
    embeddings = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float16, shape=(len(texts), encoder.dim))
    token_ids = np.lib.format.open_memmap(folder / "token_ids.npy", mode="w+", dtype=np.int32, shape=(len(texts), encoder.max_tokens))
    lengths = np.zeros(len(texts), dtype=np.int32)
    total = np.zeros(encoder.dim, dtype=np.float64)
    for at in range(0, len(texts), batch_size):
        some = texts[at : at + batch_size]
        vectors = np.asarray(encoder.embed(some), dtype=np.float32)
        ids, sizes = encoder.tokenize(some)
        _check_output(encoder, some, vectors, np.asarray(ids), np.asarray(sizes))
        vectors = _unit(vectors)
        total += counts[at : at + len(some)].astype(np.float64) @ vectors.astype(np.float64)
        embeddings[at : at + len(some)] = vectors
        token_ids[at : at + len(some)] = ids
        lengths[at : at + len(some)] = sizes
        if progress is not None:
            progress(at + len(some), len(texts))
    embeddings.flush()
    token_ids.flush()
    np.save(folder / "lengths.npy", lengths)
    np.save(folder / "mean.npy", (total / counts.sum()).astype(np.float32))


def _check_output(encoder: TextEncoderLike, texts: list[str], vectors: np.ndarray, ids: np.ndarray, sizes: np.ndarray) -> None:
    n = len(texts)
    remedy = "check the text encoder (and that its weights are the right ones)"
    if vectors.shape != (n, encoder.dim) or ids.shape != (n, encoder.max_tokens) or sizes.shape != (n,):
        raise DataError(
            f"text encoder {encoder.fingerprint}: for {n} reports it gave embeddings {vectors.shape}, tokens {ids.shape}, lengths {sizes.shape}; "
            f"expected {(n, encoder.dim)}, {(n, encoder.max_tokens)}, {(n,)}",
            remedy,
        )
    bad = ~np.isfinite(vectors).all(axis=1) | ~(np.abs(vectors).max(axis=1) > 0)
    if bad.any():
        raise DataError(f"text encoder {encoder.fingerprint}: no finite embedding for the report {texts[int(bad.argmax())]!r}", remedy)


def _write_statements(folder: Path, statements: list[list[str]]) -> None:
    ids: dict[str, int] = {}
    spelled: list[str] = []
    sets: list[list[int]] = []
    for report in statements:
        for statement in report:
            if ids.setdefault(statement.casefold(), len(ids)) == len(spelled):
                spelled.append(statement)
        sets.append(sorted({ids[statement.casefold()] for statement in report}))
    np.save(folder / "statement_indptr.npy", np.cumsum([0, *map(len, sets)]).astype(np.int64))
    np.save(folder / "statement_ids.npy", np.array([i for each in sets for i in each], dtype=np.int32))
    (folder / "statements.json").write_text(json.dumps(spelled, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _committed_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` by one rename. If another process was faster, its result stands and ours goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        add_digests(temporary)
        for file in temporary.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path / BANK_FILE).exists():
                raise
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((path / BANK_FILE).read_text(encoding="utf-8"))
        missing = {"version", "shards", "encoder_fingerprint", "cleaning_version", "style", "reports"} - description.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"text bank {path} cannot be read: {error}", f"delete the folder and {_BUILD_REMEDY}") from error
    if missing:
        raise DataError(f"text bank {path} lacks {sorted(missing)} in {BANK_FILE}", f"delete the folder and {_BUILD_REMEDY}")
    return description


def _unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    # a report that equals the mean to fp16 precision has no direction: 0 rather than amplified rounding
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-3)
