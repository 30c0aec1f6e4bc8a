"""`index.parquet`, one row per record: how a record becomes a row, and how the rows become the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cardialign.data_shards.build.report_table import ReportTable
from cardialign.data_shards.build.shard_writer import Member
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.layout import INDEX_SCHEMA
from cardialign.data_shards.signal.codec import encode
from cardialign.data_shards.signal.quality import bits

ROW_GROUP = 1 << 16


def metadata_of(record: EcgRecord) -> dict[str, Any]:
    """A record's JSON metadata: everything but the signal, which the payload carries with its gains, lead mask, rate
    and valid length."""
    return {
        "key": record.key,
        "source": record.source,
        "patient": record.patient,
        "fold": int(record.fold),
        "statements": list(record.statements),
        "labels": {name: list(codes) for name, codes in record.labels.items()},
        "age_years": None if record.age_years is None else float(record.age_years),
        "sex": record.sex,
        "acquired": record.acquired,
        "quality": {flag: list(leads) for flag, leads in record.quality.items()},
        "extra": dict(record.extra),
    }


def pack_record(record: EcgRecord, codec: str) -> tuple[bytes, dict[str, Any]]:
    """A record as its two tar members: payload and metadata."""
    return encode(record, codec), metadata_of(record)


def index_row(record: EcgRecord, member: Member) -> dict[str, Any]:
    """One row of the index, still without `shard` and `report`; `statements` travel along until the report table is
    made.

    Labels are "set:code"; a set that is present without a code is "set:", so that "labelled, none apply" differs from
    "not labelled".
    """
    return {
        "key": record.key,
        "offset": member.offset,
        "size": member.size,
        "crc32": member.crc32,
        "patient": record.patient,
        "fold": int(record.fold),
        "statements": list(record.statements),
        "labels": [f"{name}:{code}" for name, codes in sorted(record.labels.items()) for code in (codes or ("",))],
        "age_years": None if record.age_years is None else float(record.age_years),
        "sex": record.sex or "",
        "lead_mask": int(np.packbits(record.lead_mask, bitorder="little").view(np.uint16)[0]),
        "quality": bits(flag for flag, leads in record.quality.items() if leads),
        "meta_offset": member.meta_offset,
        "meta_size": member.meta_size,
    }


def index_batch(rows: Iterable[dict[str, Any]], shard: int, reports: ReportTable) -> pa.RecordBatch:
    """Rows of one shard as an Arrow batch; their reports are added to the report table."""
    rows = list(rows)
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in INDEX_SCHEMA.names}
    columns["shard"] = np.full(len(rows), shard, dtype=np.int32)
    columns["report"] = reports.add([row["statements"] for row in rows])
    columns["age_years"] = [float("nan") if age is None else age for age in columns["age_years"]]
    return pa.RecordBatch.from_pydict(columns, schema=INDEX_SCHEMA)


def write_index(batches: Iterable[pa.RecordBatch], path: Path) -> None:
    """Write the index as its batches come, in row groups of `ROW_GROUP` rows, so that it need not be in memory as a
    whole."""
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(
        path, INDEX_SCHEMA, compression="zstd", store_schema=True, write_page_checksum=True
    ) as writer:
        for batch in batches:
            waiting.append(batch)
            while sum(each.num_rows for each in waiting) >= ROW_GROUP:
                table = pa.Table.from_batches(waiting)
                writer.write_table(table.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                waiting = table.slice(ROW_GROUP).to_batches()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=ROW_GROUP)
