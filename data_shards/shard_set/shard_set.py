"""`ShardSet`: a committed shard set as one object: its index in memory, its records by row, its labels, its
selections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError, StorageError, UsageError
from cardialign.data_shards.files import parse_json
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.index import IndexFile, check_table
from cardialign.data_shards.shard_set.layout import (
    BANKS,
    INDEX,
    MANIFEST,
    REPORTS,
    content_fingerprint,
    read_manifest,
    read_parquet,
    spec_of,
)
from cardialign.data_shards.shard_set.overlay import ReportsOverlay
from cardialign.data_shards.shard_set.payloads import ShardFiles
from cardialign.data_shards.shard_set.remote import RemoteShards, open_remote
from cardialign.data_shards.shard_set.selection import Criteria, Labels, Selection, select
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.data_shards.signal.codec import Header, decode_counts, decode_header

_LOOKS = 8
"""Other records of a shard that are looked at when one is damaged; a shard of fewer is judged record by record."""


class ShardSet:
    """Open with `ShardSet.open(folder or URL)`. overlay: the reports beside the set that are read in place of its own.

    Rows are positions in the index, 0..len-1; every array below is aligned to them.

    shard int32, offset int64, size int32, crc32 uint32, fold int16, report int32 (-1 none), age_years float32 (NaN
    unknown), sex int8 (0 unknown, 1 female, 2 male), quality uint32 (bits of
    `cardialign.data_shards.signal.quality.FLAGS`), patients int32 (a code per distinct patient). Each is read when it
    is first used; those of a large set are memory-mapped (`shard_set.index`).
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        index: IndexFile,
        remote: RemoteShards | None = None,
        overlay: ReportsOverlay | None = None,
    ) -> None:
        self.path, self.manifest, self._index, self.overlay = path, manifest, index, overlay
        self.spec = spec_of(manifest)
        self.fingerprint: str = manifest["fingerprint"]
        self.shard_names: tuple[str, ...] = tuple(shard["name"] for shard in manifest["shards"])
        sizes = tuple(shard["bytes"] for shard in manifest["shards"])
        self.files = ShardFiles(path, self.shard_names, sizes, remote)

    @classmethod
    def open(cls, path: Path | str, cache: ShardCache | None = None, *, reports: Path | str | None = None) -> ShardSet:
        """A folder, or a URL whose shards are fetched into `cache` (default: CARDIALIGN_CACHE) as they are read; `path`
        is then the cache's folder. reports: a folder of other reports for its records (`shard_set.overlay`).

        The index is compared with its digest now, the report table when it is first read, both once per process; a
        shard's size when it is opened, a record's checksum whenever it is read. Raises DataError for a set that is
        missing, unfinished, of another schema, changed by hand, or whose index does not belong to its manifest.
        """
        remote = open_remote(path, cache)
        path = Path(path) if remote is None else remote.folder
        manifest = read_manifest(path)
        if content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"]) != manifest["fingerprint"]:
            raise DataError(
                f"{path / MANIFEST} was changed by hand: its fingerprint does not follow from its shards",
                "copy the shard set there again, or build it again",
            )
        index = IndexFile(path / INDEX, manifest["tables"][INDEX])
        records = manifest["counts"]["records"]
        if index.records != records:
            raise DataError(
                f"{path / INDEX} has {index.records} rows, the manifest says {records} records",
                "the index is stale; run `cardialign shards verify` and build the set again",
            )
        overlay = None if reports is None else ReportsOverlay(reports, manifest["fingerprint"], records)
        return cls(path, manifest, index, remote, overlay)

    def __len__(self) -> int:
        return self._index.records

    def __repr__(self) -> str:
        return (
            f"ShardSet({str(self.path)!r}, records={len(self)}, shards={len(self.shard_names)}, "
            f"fingerprint={self.fingerprint[:12]})"
        )

    def _column(self, name: str, dtype: Any) -> np.ndarray:
        return self._index.column(name, dtype)

    def _within(self, column: np.ndarray, name: str, first: int, end: int) -> np.ndarray:
        """The column, whose values are first..end-1. Raises DataError for one that points out of the set."""
        if column.size and not (first <= int(column.min()) and int(column.max()) < end):
            row = int(np.flatnonzero((column < first) | (column >= end))[0])
            raise DataError(
                f"{self.path / INDEX}: record {self.key(row)} names {name} {int(column[row])}, the manifest has {end}",
                "the index is stale; run `cardialign shards verify` and build the set again",
            )
        return column

    @cached_property
    def index(self) -> pa.Table:
        """The whole index as a table in memory: for looking at, not for streaming."""
        return self._index.table()

    @cached_property
    def shard(self) -> np.ndarray:
        return self._within(self._column("shard", np.int32), "shard", 0, len(self.shard_names))

    @cached_property
    def offset(self) -> np.ndarray:
        return self._column("offset", np.int64)

    @cached_property
    def size(self) -> np.ndarray:
        return self._column("size", np.int32)

    @cached_property
    def crc32(self) -> np.ndarray:
        return self._column("crc32", np.uint32)

    @cached_property
    def fold(self) -> np.ndarray:
        return self._column("fold", np.int16)

    @cached_property
    def report(self) -> np.ndarray:
        own = self._within(self._column("report", np.int32), "report", -1, self.manifest["counts"]["reports"])
        if self.overlay is None:
            return own
        other = self.overlay.report
        if differing := int(((own < 0) != (other < 0)).sum()):
            raise DataError(
                f"the reports in {self.overlay.folder} say something of other records than {self.path} does "
                f"({differing} of {len(self)})",
                "make them again for this set",
            )
        return other

    @property
    def report_count(self) -> int:
        """How many distinct reports there are."""
        return int(self.manifest["counts"]["reports"]) if self.overlay is None else self.overlay.reports

    @property
    def overlay_digest(self) -> str | None:
        """Of the content of the reports that are read in place of the set's own; None where these are read."""
        return None if self.overlay is None else self.overlay.digest

    @property
    def banks(self) -> Path:
        """The folder of the text banks of its reports."""
        return self.path / BANKS if self.overlay is None else self.overlay.banks

    @cached_property
    def age_years(self) -> np.ndarray:
        return self._column("age_years", np.float32)

    @cached_property
    def quality(self) -> np.ndarray:
        return self._column("quality", np.uint32)

    @cached_property
    def sex(self) -> np.ndarray:
        return self._index.column("sex", np.int8, _sex_codes)

    @cached_property
    def patients(self) -> np.ndarray:
        """One code per patient; a record without a patient id is a patient of its own."""
        return self._index.patients()

    @cached_property
    def reports(self) -> pa.Table:
        """The distinct reports: report int32 (= row), key, statements, text, count."""
        return self.report_columns()

    def report_columns(self, names: list[str] | None = None) -> pa.Table:
        """Some columns of the table of distinct reports. Raises DataError when it is not the one of this set."""
        if self.overlay is not None:
            return self.overlay.columns(names)
        check_table(self.path / REPORTS, self.manifest["tables"][REPORTS])
        return read_parquet(self.path / REPORTS, columns=names)

    def key(self, row: int) -> str:
        return self._index.key(int(row))

    def lead_masks(self, rows: np.ndarray) -> np.ndarray:
        """bool (n, 12): False where a lead is missing or unusable."""
        return unpack_lead_masks(self.lead_mask_bits[rows])

    @cached_property
    def lead_mask_bits(self) -> np.ndarray:
        """uint16 (records,), one bit per lead; `lead_masks` unpacks them."""
        return self._column("lead_mask", np.uint16)

    @cached_property
    def _meta_offset(self) -> np.ndarray:
        return self._column("meta_offset", np.int64)

    @cached_property
    def _meta_size(self) -> np.ndarray:
        return self._column("meta_size", np.int32)

    def select(
        self,
        folds: Iterable[int] | None = None,
        require_report: bool = False,
        label_set: str | None = None,
        keys: Sequence[str] | None = None,
        split: SplitRule | str | None = None,
    ) -> Selection:
        """Rows that meet every criterion given; None asks nothing.

        folds: one of them; label_set: labelled in it; keys: one of them; split: by patient (`shard_set.splits`), its
        name alone means the default rule. Raises DataError when a key or label set does not exist or nothing is left.
        """
        wanted = None if folds is None else sorted({int(fold) for fold in folds})
        rule = SplitRule(split) if isinstance(split, str) else split
        criteria = Criteria(wanted, require_report, label_set, keys, rule)
        return select(self._index, self._labels, self.fingerprint, criteria)

    @cached_property
    def _labels(self) -> Labels:
        return Labels(self._index)

    @property
    def label_sets(self) -> tuple[str, ...]:
        return self._labels.names

    def labels(self, rows: np.ndarray, label_set: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Codes of the label set (sorted, over the whole set), bool (n, C), and bool (n,): labelled in this set at all.

        A row that is not labelled is all False in the matrix and must not count as a negative. Raises DataError for an
        unknown label set.
        """
        return self._labels.matrix(rows, label_set)

    def read_payload(self, row: int) -> bytes:
        """The coded signal of one record, checked against the index.

        Raises DataError naming record, shard and offset for a record that is damaged, StorageError naming the shard for
        one that is missing, of another size, not given by its storage, or damaged wherever one looks.
        """
        row = int(row)
        try:
            return self._payload(row)
        except StorageError:
            raise
        except DataError:
            self._check_others(row)
            raise

    def _payload(self, row: int) -> bytes:
        shard, offset, size = int(self.shard[row]), int(self.offset[row]), int(self.size[row])
        return self.files.payload(shard, offset, size, int(self.crc32[row]), lambda: self.key(row))

    def _check_others(self, row: int) -> None:
        """Raise StorageError when other records of this record's shard are damaged, too, whichever are looked at: then
        the file holds something else, and is one fault, not a thousand."""
        shard = int(self.shard[row])
        others = np.flatnonzero(self.shard == shard)
        others = others[others != row]
        if others.size < _LOOKS:
            return
        for other in others[np.linspace(0, others.size - 1, _LOOKS).astype(int)].tolist():
            try:
                self._payload(other)
            except StorageError:
                raise
            except DataError:
                continue
            return
        raise StorageError(
            f"shard {self.shard_names[shard]} of {self.path} holds something else than the index says: record "
            f"{self.key(row)} and all {_LOOKS} others that were looked at do not match their crc32",
            "copy the shard there again, or build the set again; `cardialign shards verify` says what else is wrong",
        )

    def read_metadata(self, row: int) -> dict[str, Any]:
        """The JSON metadata of one record."""
        shard, offset = int(self.shard[row]), int(self._meta_offset[row])
        raw = self.files.read(shard, offset, int(self._meta_size[row]), lambda: self.key(row))
        try:
            meta: dict[str, Any] = parse_json(raw)
        except ValueError as error:
            raise DataError(
                f"record {self.key(row)}: metadata in shard {self.shard_names[shard]} at offset {offset} is damaged",
                "run `cardialign shards verify` and build the shard set again",
            ) from error
        return meta

    def read_record(self, row: int) -> EcgRecord:
        """One record with everything its shard knows about it; -1 is the last. Raises UsageError for a row that is
        none."""
        row = self._row(row)
        payload = self.read_payload(row)
        meta = self.read_metadata(row)
        counts, header = decode_counts(payload, samples=self.spec.samples), decode_header(payload)
        try:
            return self._record(counts, meta, header)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"record {self.key(row)}: its metadata in shard {self.shard_names[int(self.shard[row])]} is damaged "
                f"({error})",
                "run `cardialign shards verify` and build the shard set again",
            ) from error

    def _row(self, row: Any) -> int:
        if isinstance(row, bool) or not isinstance(row, Integral) or not -len(self) <= int(row) < len(self):
            raise UsageError(
                f"{self.path} has no record {row!r:.60}: its rows are 0 to {len(self) - 1}",
                "take rows from `select(...).rows`; a record's key finds its row: `select(keys=[key])`",
            )
        return int(row) % len(self)

    @staticmethod
    def _record(counts: np.ndarray, meta: dict[str, Any], header: Header) -> EcgRecord:
        return EcgRecord(
            key=meta["key"],
            counts=counts,
            gain=np.array(header.gain),
            sampling_rate=header.sampling_rate,
            statements=tuple(meta["statements"]),
            labels={name: tuple(codes) for name, codes in meta["labels"].items()},
            patient=meta["patient"],
            fold=meta["fold"],
            age_years=meta["age_years"],
            sex=meta["sex"],
            acquired=meta["acquired"],
            lead_mask=header.lead_mask,
            valid_samples=header.valid_samples,
            quality={flag: tuple(leads) for flag, leads in meta["quality"].items()},
            source=meta["source"],
            extra=meta["extra"],
        )


def _sex_codes(column: pa.Array) -> np.ndarray:
    codes = pc.index_in(column, value_set=pa.array(["female", "male"]))
    return (pc.fill_null(codes, -1).to_numpy() + 1).astype(np.int8)


def unpack_lead_masks(bits: np.ndarray) -> np.ndarray:
    """uint16 (n,) of the index -> bool (n, 12)."""
    return (bits[:, None] >> np.arange(12) & 1).astype(bool)
