"""`ShardSet`: a committed shard set as one object: its index in memory, its records by row, its labels, its selections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cardialign.data_shards.build.commit import INDEX, MANIFEST, REPORTS, SCHEMA_VERSION
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.index import IndexFile, patient_codes
from cardialign.data_shards.shard_set.payloads import ShardFiles
from cardialign.data_shards.shard_set.remote import RemoteShards, open_remote
from cardialign.data_shards.shard_set.splits import SplitRule, in_split
from cardialign.data_shards.signal.codec import Header, decode_counts, decode_header


@dataclass(frozen=True)
class Selection:
    """Rows of a shard set, ascending int64, and a fingerprint of the set, the criteria and the rows."""

    rows: np.ndarray
    fingerprint: str


class ShardSet:
    """Open with `ShardSet.open(folder or URL)`. Rows are positions in the index, 0..len-1; every array below is aligned to them.

    shard int32, offset int64, size int32, crc32 uint32, fold int16, report int32 (-1 none), age_years float32 (NaN unknown), sex int8
    (0 unknown, 1 female, 2 male), quality uint32 (bits of `cardialign.data_shards.signal.quality.FLAGS`), patients int32 (a code per distinct patient).
    Each is read when it is first used; those of a large set are memory-mapped (`index_file`).
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], index: pa.Table | IndexFile, remote: RemoteShards | None = None
    ) -> None:
        self.path, self.manifest, self._source = path, manifest, index
        self.spec = SignalSpec(manifest["spec"]["sampling_rate"], manifest["spec"]["seconds"])
        self.fingerprint: str = manifest["fingerprint"]
        self.shard_names: tuple[str, ...] = tuple(shard["name"] for shard in manifest["shards"])
        self.files = ShardFiles(path, self.shard_names, remote)

    @classmethod
    def open(cls, path: Path | str, cache: ShardCache | None = None) -> ShardSet:
        """A folder, or a URL whose shards are fetched into `cache` (default: CARDIALIGN_CACHE) as they are read; `path` is then the cache's folder.

        Raises DataError for a set that is missing, unfinished, of another schema, or whose index does not belong to its manifest.
        """
        remote = open_remote(path, cache)
        path = Path(path) if remote is None else remote.folder
        manifest = read_manifest(path)
        index = IndexFile(path / INDEX, manifest["tables"][INDEX])
        records = manifest["counts"]["records"]
        if index.records != records:
            raise DataError(
                f"{path / INDEX} has {index.records} rows, the manifest says {records} records",
                "the index is stale; run `cardialign shards verify` and build the set again",
            )
        return cls(path, manifest, index, remote)

    def __len__(self) -> int:
        return self._source.records if isinstance(self._source, IndexFile) else int(self._source.num_rows)

    def __repr__(self) -> str:
        return f"ShardSet({str(self.path)!r}, records={len(self)}, shards={len(self.shard_names)}, fingerprint={self.fingerprint[:12]})"

    def _column(self, name: str, dtype: Any) -> np.ndarray:
        if isinstance(self._source, IndexFile):
            return self._source.column(name, dtype)
        return self._source.column(name).to_numpy().astype(dtype, copy=False)

    def _arrow(self, name: str) -> pa.ChunkedArray:
        return self._source.arrow(name) if isinstance(self._source, IndexFile) else self._source.column(name)

    @cached_property
    def index(self) -> pa.Table:
        """The whole index as a table in memory: for looking at, not for streaming."""
        return self._source.table() if isinstance(self._source, IndexFile) else self._source

    @cached_property
    def shard(self) -> np.ndarray:
        return self._column("shard", np.int32)

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
        return self._column("report", np.int32)

    @cached_property
    def age_years(self) -> np.ndarray:
        return self._column("age_years", np.float32)

    @cached_property
    def quality(self) -> np.ndarray:
        return self._column("quality", np.uint32)

    @cached_property
    def sex(self) -> np.ndarray:
        if isinstance(self._source, IndexFile):
            return self._source.column("sex", np.int8, _sex_codes)
        return _sex_codes(self._source.column("sex").combine_chunks())

    @cached_property
    def patients(self) -> np.ndarray:
        """One code per patient; a record without a patient id is a patient of its own."""
        if isinstance(self._source, IndexFile):
            return self._source.patients()
        return patient_codes(self._source.column("patient"))

    @cached_property
    def reports(self) -> pa.Table:
        """The distinct reports: report int32 (= row), key, statements, text, count."""
        return read_table(self.path / REPORTS)

    @property
    def label_sets(self) -> tuple[str, ...]:
        return tuple(sorted({name for name, _, _ in self._label_pairs}))

    def key(self, row: int) -> str:
        if isinstance(self._source, IndexFile):
            return self._source.key(int(row))
        return self._source.column("key")[int(row)].as_py()

    def lead_masks(self, rows: np.ndarray) -> np.ndarray:
        """bool (n, 12): False where a lead is missing or unusable."""
        return unpack_lead_masks(self._lead_masks[rows])

    @cached_property
    def _lead_masks(self) -> np.ndarray:
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
        """Rows that meet every criterion given; `split` by patient (`cardialign.data_shards.shard_set.splits`), its name alone means the default rule. Raises DataError when a key, fold or label set does not exist or nothing is left."""
        keep = np.ones(len(self), dtype=bool)
        wanted = None if folds is None else sorted({int(fold) for fold in folds})
        if wanted is not None:
            keep &= np.isin(self.fold, wanted)
        if require_report:
            keep &= self.report >= 0
        if label_set is not None:
            self._check_label_set(label_set)
            keep &= self._labelled(label_set)
        if keys is not None:
            found = pc.index_in(pa.array(list(keys), pa.string()), value_set=self._arrow("key").combine_chunks())
            if found.null_count:
                unknown = [key for key, row in zip(keys, found.to_pylist(), strict=True) if row is None]
                raise DataError(
                    f"{self.path} has no record {unknown[0]!r} ({len(unknown)} of {len(keys)} keys are unknown)",
                    "check the keys",
                )
            chosen = np.zeros(len(self), dtype=bool)
            chosen[found.to_numpy()] = True
            keep &= chosen
        rule = SplitRule(split) if isinstance(split, str) else split
        if rule is not None:
            keep &= self._in_split(rule)
        rows = np.flatnonzero(keep).astype(np.int64, copy=False)
        if rows.size == 0:
            present = ", ".join(map(str, np.unique(self.fold)))
            raise DataError(
                f"no record of {self.path} meets folds={wanted} require_report={require_report} label_set={label_set}"
                + (f" split={rule.split}" if rule else ""),
                f"folds present: {present}; label sets present: {', '.join(self.label_sets) or 'none'}; records with a report: {int((self.report >= 0).sum())}",
            )
        criteria: list[Any] = [
            self.fingerprint,
            wanted,
            require_report,
            label_set,
            None if keys is None else sorted(keys),
        ]
        if rule is not None:
            criteria.append([rule.split, rule.salt, rule.fractions])
        digest = hashlib.sha256(json.dumps(criteria).encode())
        digest.update(rows.astype("<i8", copy=False).data)  # no copy: ten million rows are 80 MB
        return Selection(rows, digest.hexdigest())

    def _in_split(self, rule: SplitRule) -> np.ndarray:
        """bool (records,); a record without a patient id is dealt by its key, as a patient of its own."""
        encoded = self.index.column("patient").combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        held = in_split(names, rule)[encoded.indices.to_numpy()]
        if "" in names:
            unknown = np.flatnonzero(encoded.indices.to_numpy() == names.index(""))
            keys = self.index.column("key").take(unknown).to_pylist()
            held[unknown] = in_split([f"record:{key}" for key in keys], rule)
        return held

    @cached_property
    def _label_pairs(self) -> list[tuple[str, str, np.ndarray]]:
        """(label set, code, rows) of every label; the code "" marks a row that is labelled and to which no code applies."""
        column = self._arrow("labels").combine_chunks()
        encoded = column.flatten().dictionary_encode()
        row_of = pc.list_parent_indices(column).to_numpy()
        codes = encoded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
        names = [label.partition(":") for label in encoded.dictionary.to_pylist()]
        return [
            (name, code, row_of[order[bounds[i] : bounds[i + 1]]].astype(np.int64))
            for i, (name, _, code) in enumerate(names)
        ]

    def _check_label_set(self, label_set: str) -> None:
        if label_set not in self.label_sets:
            raise DataError(
                f"{self.path} has no label set {label_set!r}",
                f"label sets present: {', '.join(self.label_sets) or 'none (build with labels)'}",
            )

    def _labelled(self, label_set: str) -> np.ndarray:
        labelled = np.zeros(len(self), dtype=bool)
        for name, _, rows in self._label_pairs:
            if name == label_set:
                labelled[rows] = True
        return labelled

    def labels(self, rows: np.ndarray, label_set: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Codes of the label set (sorted, over the whole set), bool (n, C), and bool (n,): labelled in this set at all.

        A row that is not labelled is all False in the matrix and must not count as a negative. Raises DataError for an unknown label set.
        """
        self._check_label_set(label_set)
        pairs = sorted((code, holders) for name, code, holders in self._label_pairs if name == label_set and code)
        matrix = np.zeros((len(self), len(pairs)), dtype=bool)
        for column, (_, holders) in enumerate(pairs):
            matrix[holders, column] = True
        return [code for code, _ in pairs], matrix[rows], self._labelled(label_set)[rows]

    def read_payload(self, row: int) -> bytes:
        """The coded signal of one record, checked against the index. Raises DataError naming record, shard and offset."""
        return self.files.payload(self, int(row))

    def read_metadata(self, row: int) -> dict[str, Any]:
        """The JSON metadata of one record."""
        key, shard, offset = self.key(row), int(self.shard[row]), int(self._meta_offset[row])
        raw = self.files.read(shard, offset, int(self._meta_size[row]), key)
        try:
            meta: dict[str, Any] = json.loads(raw)
        except ValueError as error:
            raise DataError(
                f"record {key}: metadata in shard {self.shard_names[shard]} at offset {offset} is damaged",
                "run `cardialign shards verify` and build the shard set again",
            ) from error
        return meta

    def read_record(self, row: int) -> EcgRecord:
        """One record with everything its shard knows about it."""
        payload = self.read_payload(row)
        meta = self.read_metadata(row)
        header = decode_header(payload)
        try:
            return self._record(payload, meta, header)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"record {self.key(row)}: its metadata in shard {self.shard_names[int(self.shard[row])]} is damaged ({error})",
                "run `cardialign shards verify` and build the shard set again",
            ) from error

    @staticmethod
    def _record(payload: bytes, meta: dict[str, Any], header: Header) -> EcgRecord:
        return EcgRecord(
            key=meta["key"],
            counts=decode_counts(payload),
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


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished set. Raises DataError for a folder without one, a damaged one, or one of another schema."""
    file = path / MANIFEST
    if not path.is_dir():
        raise DataError(f"{path} is not a folder", "name the folder of a shard set")
    if not file.exists():
        raise DataError(
            f"{path} holds no finished shard set (no {MANIFEST})",
            "finish the build: run the same `cardialign shards build` again",
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}", "build the shard set again") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema version {version}; this software reads version {SCHEMA_VERSION}",
            "build the shard set again",
        )
    try:
        _check_form(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file} is damaged: {type(error).__name__}: {error}", "build the shard set again") from error
    return manifest


def _check_form(manifest: dict[str, Any]) -> None:
    """Raise what Python raises where a manifest lacks what is read from it, or holds it in another form."""
    spec, counts, tables = manifest["spec"], manifest["counts"], manifest["tables"]
    if not SignalSpec(float(spec["sampling_rate"]), float(spec["seconds"])).samples == int(spec["samples"]) > 0:
        raise ValueError(f"spec is {spec}")
    for shard in manifest["shards"]:
        _ = str(shard["name"]), str(shard["sha256"]), int(shard["bytes"]), int(shard["records"])
    _ = int(counts["records"]), counts["reports"], tables[INDEX], tables[REPORTS], manifest["source"].get("name")
    _ = manifest["fingerprint"], manifest["codec"]


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet table, or some of its columns. Raises DataError when it is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns, memory_map=True, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "run `cardialign shards verify` and build the shard set again"
        ) from error
