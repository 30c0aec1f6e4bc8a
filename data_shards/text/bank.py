"""The text bank: everything a run needs from its reports, computed once per distinct report, kept beside the shards and
memory-mapped.

<shards>/text_bank/<key>/: embeddings.npy, mean.npy, token_ids.npy, lengths.npy, statement_indptr.npy,
statement_ids.npy, axes.npy, statements.json, bank.json; derived from them statement_vectors.npy, and distant-64.npy
where it was asked for (`cardialign.data_shards.text.distant`). The key follows from the encoder, the report cleaning,
the shard set and the style of joining statements, so a bank is never stale: another encoder is another folder. Of a set
that is read with other reports (`shard_set.overlay`) the bank lies beside these, and they are part of its key. Rows are
those of `reports.parquet`. An unfinished build leaves `.<key>.building/`, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import DataError, UsageError, disk_error
from cardialign.data_shards.files import UNREADABLE_ARRAY, commit_folder, parse_json, read_bytes
from cardialign.data_shards.report_text import CLEANING_VERSION, STYLES, join_statements
from cardialign.data_shards.shard_set.bank_description import (
    BANK_VERSION,
    OtherBankVersionError,
    bank_digest,
    listed_files,
)
from cardialign.data_shards.shard_set.layout import BANK_FILE, BANKS, REPORTS, read_manifest
from cardialign.data_shards.shard_set.overlay import ReportsOverlay
from cardialign.data_shards.shard_set.remote import local_folder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.storage import TOO_MANY, way_out
from cardialign.data_shards.text.bank_files import (
    check_files,
    commit_derived,
    open_derived,
    read_description,
    write_description,
)
from cardialign.data_shards.text.blocks import BLOCK, TextEncoderLike, assemble, check_told_apart, make_blocks
from cardialign.data_shards.text.similarity import jaccard, low_rank, low_rank_space, unit

log = logging.getLogger(__name__)
_ARRAYS = ("embeddings", "mean", "token_ids", "lengths", "statement_indptr", "statement_ids", "axes")
_BUILD_REMEDY = "run `cardialign text-bank build` for these shards and this text encoder"


_STATEMENTS = "statements.json"
STATEMENT_VECTORS = "statement_vectors.npy"


def distant_name(k: int) -> str:
    """The file that holds the k most distant reports of each (`cardialign.data_shards.text.distant`)."""
    return f"distant-{k}.npy"


class NoTextBankError(DataError):
    """There is no text bank as it was asked for; nothing that is there is damaged."""


def _remedy(error: Exception) -> str:
    """A bank that nothing is wrong with but the limit of open files is not to be deleted."""
    if isinstance(error, OSError) and error.errno in TOO_MANY:
        return way_out(error)
    return f"delete the folder and {_BUILD_REMEDY}"


class TextBank:
    """R distinct reports, width d.

    Open with `TextBank.open(shards)`; arrays are memory-mapped and must not be written to.

    embeddings float16 (R, d), unit rows; mean float32 (d,), over records (a frequent report weighs more); token_ids
    int32 (R, max_tokens); lengths int32 (R,); axes float32 (d, d): principal axes of the centred embeddings, strongest
    first; description: bank.json, whose `low_rank` states the error of using only the first axes; digest: of the
    content, what a run is bound to.

    Sizes are compared with bank.json, digests too unless `digests` is False: then `check_contents` is still to be
    called before anything is computed from the bank. Raises DataError that names the file that differs.
    """

    def __init__(self, path: Path, *, digests: bool = True) -> None:
        self.path = path
        self.description: dict[str, Any] = read_description(path)
        self.digest = bank_digest(self.description)
        unlisted = sorted({*(f"{name}.npy" for name in _ARRAYS), _STATEMENTS} - self.description["files"].keys())
        if unlisted:
            raise DataError(
                f"text bank {path}: {BANK_FILE} lists no {', '.join(unlisted)}",
                f"delete the folder and {_BUILD_REMEDY}",
            )
        check_files(path, self._files(), quick=not digests)
        try:
            arrays = {name: load_array(path / f"{name}.npy", mapped=True) for name in _ARRAYS}
        except UNREADABLE_ARRAY as error:
            raise DataError(f"text bank {path} cannot be read: {error}", _remedy(error)) from error
        self.embeddings: np.ndarray = arrays["embeddings"]
        self.mean: np.ndarray = np.array(arrays["mean"])
        self.token_ids: np.ndarray = arrays["token_ids"]
        self.lengths: np.ndarray = np.array(arrays["lengths"])
        self._indptr: np.ndarray = np.array(arrays["statement_indptr"])
        self._ids: np.ndarray = np.array(arrays["statement_ids"])
        self.axes: np.ndarray = np.array(arrays["axes"])
        reports = self.description["reports"]
        if not (
            self.embeddings.shape[0] == self.token_ids.shape[0] == self.lengths.size == self._indptr.size - 1 == reports
        ):
            raise DataError(
                f"text bank {path} holds arrays of different lengths", f"delete the folder and {_BUILD_REMEDY}"
            )

    def _files(self) -> dict[str, Any]:
        own = self.description["files"]
        return {name: facts for name, facts in listed_files(self.description).items() if name in own}

    def check_contents(self) -> None:
        """Compare every file of the bank with its digest, once per process. Raises DataError that names the file."""
        check_files(self.path, self._files(), quick=False)

    @classmethod
    def open(
        cls,
        shard_set_path: Path | str,
        encoder_fingerprint: str | None = None,
        style: str | None = None,
        *,
        digests: bool = True,
        reports: Path | str | None = None,
    ) -> TextBank:
        """The bank of this encoder (or the only one there). digests: as of the class. reports: the bank of these, which
        lie beside the set, and not of its own.

        Raises NoTextBankError when there is none, DataError when there are several and the choice is open, or when the
        one is not as it was built.
        """
        shards = local_folder(shard_set_path)
        manifest = read_manifest(shards)
        wanted, counts = manifest["fingerprint"], manifest["counts"]
        overlay = None if reports is None else ReportsOverlay(reports, wanted, counts["records"])
        place, number = (shards / BANKS, counts["reports"]) if overlay is None else (overlay.banks, overlay.reports)
        found: list[Path] = []
        for file in sorted(place.glob(f"[!.]*/{BANK_FILE}")):
            try:
                bank = read_description(file.parent)
            except OtherBankVersionError:
                continue
            if bank["shards"] != wanted or bank["cleaning_version"] != CLEANING_VERSION:
                continue
            if bank.get("overlay") != (None if overlay is None else overlay.digest):
                continue
            if encoder_fingerprint in (None, bank["encoder_fingerprint"]) and style in (None, bank["style"]):
                found.append(file.parent)
        if not found:
            encoder = f" of encoder {encoder_fingerprint}" if encoder_fingerprint else ""
            raise NoTextBankError(
                f"{place.parent} has no text bank{encoder}" + (f" with style {style}" if style else ""), _BUILD_REMEDY
            )
        if len(found) > 1:
            raise DataError(
                f"{place.parent} has {len(found)} text banks: {', '.join(path.name for path in found)}",
                "say which encoder and style are meant",
            )
        opened = cls(found[0], digests=digests)
        if len(opened) != number:
            raise DataError(
                f"text bank {opened.path} holds {len(opened)} reports, the shard set has {number}",
                f"delete the folder and {_BUILD_REMEDY}",
            )
        return opened

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
        try:
            return parse_json(read_bytes(self.path / _STATEMENTS))
        except (OSError, ValueError) as error:
            raise DataError(f"text bank {self.path} cannot be read: {_STATEMENTS}: {error}", _remedy(error)) from error

    def statement_vectors(self) -> np.ndarray:
        """float32 (statements, d): the encoder's unit vector of each distinct statement, read alone (to fp16
        precision).

        Raises DataError where they are not there (a bank of an earlier release), or are not as they were made.
        """
        vectors = open_derived(self.path, self.description, STATEMENT_VECTORS, _BUILD_REMEDY)
        if vectors.shape != (len(self.statements), self.dim):
            raise DataError(
                f"{self.path / STATEMENT_VECTORS} holds {vectors.shape} for {len(self.statements)} statements",
                f"delete it and {_BUILD_REMEDY}",
            )
        return unit(vectors.astype(np.float32))

    def distant(self, k: int) -> np.ndarray:
        """int32 (R, min(k, R - 1)), memory-mapped: the reports that say the most different things, the most distant
        first.

        Raises DataError when the table has not been made, is not as it was made, or does not fit the bank.
        """
        remedy = f"run `cardialign text-bank build --distant {k}` for these shards and this text encoder"
        table = open_derived(self.path, self.description, distant_name(k), remedy)
        if table.shape != (len(self), min(k, len(self) - 1)) or table.dtype != np.int32:
            path = self.path / distant_name(k)
            raise DataError(
                f"{path} holds {table.dtype} {table.shape} for {len(self)} reports", f"delete it and {remedy}"
            )
        return table

    def embedding(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d) unit vectors, as the encoder gave them (to fp16 precision)."""
        return unit(self.embeddings[self._checked(report_ids)].astype(np.float32))

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d): unit vectors of e - mean; the zero vector where a report is the mean itself."""
        return unit(self.embeddings[self._checked(report_ids)].astype(np.float32) - self.mean)

    def similarity_features(self, report_ids: np.ndarray, dim: int | None = None) -> np.ndarray:
        """float32 unit rows whose products are S: `centred` (b, d), or its first `dim` principal axes (b, dim) at the
        error that bank.json states."""
        centred = self.centred(report_ids)
        return centred if dim is None or dim >= self.dim else low_rank(centred, self.axes[:, :dim])

    def jaccard(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """float32 (m, n): overlap of the statement sets of reports `first` (m,) and `second` (n,; by default the same),
        exact."""
        sets = self.statement_sets(first)
        return jaccard(sets, sets if second is None else self.statement_sets(second))

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
    block: int = BLOCK,
    progress: Callable[[int, int], None] | None = None,
) -> TextBank:
    """Compute and commit the bank of a shard set (in `out`/<key>, by default <shards>/text_bank/<key>, or beside the
    other reports that it is read with); a bank that is there is opened, not rebuilt.

    A build that was killed is continued by the next one, at most `block` reports are embedded twice, and the result is
    the same to the bit. progress(reports done, reports). Raises DataError when the set has no report, when the
    encoder's output is not what it promises or it cannot tell any report from another, or when the disk is full;
    UsageError for an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"unknown report style {style!r}", f"choose one of {', '.join(STYLES)}")
    statements: list[list[str]] = shard_set.reports.column("statements").to_pylist()
    if not statements:
        raise DataError(
            f"the report table {shard_set.path / REPORTS} is empty: no record of this set has a report",
            "build shards from a source with reports",
        )
    description = _description(encoder, style, shard_set, len(statements))
    path = Path(out or shard_set.banks) / bank_key(description)
    if (path / BANK_FILE).exists():
        log.info("text_bank path=%s reused reports=%d", path, len(statements))
        return add_statement_vectors(TextBank(path), encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.building")
    try:
        counts = shard_set.reports.column("count").to_numpy()
        texts = [join_statements(each, style) for each in statements]
        make_blocks(building, encoder, texts, counts, batch_size=batch_size, block=block, progress=progress)
        with commit_folder(path) as folder:
            assemble(building, folder, encoder, counts, block)
            check_told_apart(folder, encoder)
            _write_statements(folder, statements)
            axes, errors = low_rank_space(_Centred(folder))
            np.save(folder / "axes.npy", axes)
            write_description(folder, {**description, "low_rank": errors})
    except (OSError, DataError) as error:
        if (path / BANK_FILE).exists():  # another process finished the same bank and took the blocks away
            return TextBank(path)
        if isinstance(error, DataError):
            raise
        raise disk_error(error, path) from error
    shutil.rmtree(building, ignore_errors=True)
    log.info("text_bank path=%s built reports=%d", path, len(statements))
    return add_statement_vectors(TextBank(path), encoder)


def add_statement_vectors(bank: TextBank, encoder: TextEncoderLike) -> TextBank:
    """The bank with the vector of each of its statements (`statement_vectors`), made where they are not there yet.

    Raises DataError for another encoder than the bank's, and when the disk is full.
    """
    if STATEMENT_VECTORS in bank.description.get("derived", {}):
        return bank
    if encoder.fingerprint != bank.description["encoder_fingerprint"]:
        raise DataError(f"text bank {bank.path} was made with another report encoder", _BUILD_REMEDY)
    vectors = encoder.embed(bank.statements).astype(np.float16)
    try:
        bank.description = commit_derived(bank.path, STATEMENT_VECTORS, vectors)
    except OSError as error:
        raise disk_error(error, bank.path) from error
    log.info("statement_vectors path=%s statements=%d", bank.path, len(vectors))
    return bank


def _description(encoder: TextEncoderLike, style: str, shard_set: ShardSet, reports: int) -> dict[str, Any]:
    """`bank.json` as far as it is known before a report is embedded."""
    return {
        "version": BANK_VERSION,
        "encoder": encoder.describe(),
        "encoder_fingerprint": encoder.fingerprint,
        "max_tokens": int(encoder.max_tokens),
        "dim": int(encoder.dim),
        "style": style,
        "cleaning_version": CLEANING_VERSION,
        "shards": shard_set.fingerprint,
        "reports": reports,
        **({} if shard_set.overlay_digest is None else {"overlay": shard_set.overlay_digest}),
    }


def bank_key(description: dict[str, Any]) -> str:
    """Short fingerprint of what a bank depends on: encoder, token limit, cleaning, shard set, other reports than the
    set's own, style, format."""
    parts = ["version", "encoder_fingerprint", "max_tokens", "style", "cleaning_version", "shards"]
    parts += ["overlay"] if "overlay" in description else []
    return hashlib.sha256(json.dumps([description[part] for part in parts]).encode()).hexdigest()[:16]


class _Centred:
    """The centred embeddings of a bank that is not finished yet."""

    def __init__(self, folder: Path) -> None:
        self.embeddings: np.ndarray = load_array(folder / "embeddings.npy", mapped=True)
        self.mean: np.ndarray = load_array(folder / "mean.npy")

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        return unit(self.embeddings[report_ids].astype(np.float32) - self.mean)


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
    (folder / _STATEMENTS).write_text(json.dumps(spelled, ensure_ascii=False), encoding="utf-8")
