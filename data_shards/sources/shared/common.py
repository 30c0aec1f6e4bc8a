"""Steps that data set readers share: tables, patient hashes and folds, outside labels, and the way from a WFDB file to an `EcgRecord`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from cardialign.data_shards.errors import DataError, RecordRejected, UserError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.reading.wfdb.header import RATE_RANGE
from cardialign.data_shards.reading.wfdb.reader import WfdbSignal, read_wfdb, standard_leads
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal import quality

Labels = dict[str, tuple[str, ...]]


def patient_hash(patient: str, salt: str = "") -> str:
    """16 hex digits of a patient id, keyed with `salt` (BLAKE2b). The salt is kept outside the shards."""
    key = salt.encode()
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(patient.encode(), key=key, digest_size=8).hexdigest()


def fold_of(hashed_patient: str) -> int:
    """Fold 1..10 of a patient, for data sets that publish none."""
    return 1 + int(hashed_patient, 16) % 10


def check_layout(root: Path, source: str, files: Sequence[str], layout: str) -> None:
    """Raise UserError unless `root` is a folder that holds all `files` (each plain or .gz). `layout` says in words what is expected."""
    if not root.is_dir():
        raise UserError(f"{source}: the folder {str(root)!r} does not exist", f"give the folder that holds {layout}")
    missing = [name for name in files if find_table(root, name) is None]
    if missing:
        raise UserError(
            f"{source}: {', '.join(missing)} not found in {str(root)!r}", f"give the folder that holds {layout}"
        )


def find_table(root: Path, name: str) -> Path | None:
    """`name` or `name`.gz below `root`, None when neither is there."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def read_table(
    path: Path, required: Sequence[str], categorical: Sequence[str] = (), optional: Sequence[str] = ()
) -> pa.Table:
    """The named columns of a CSV (plain or .gz) as strings, an empty field as null; `categorical` ones dictionary-encoded.

    Raises UserError when the file is not there, DataError when it cannot be parsed or lacks a required column (all of them named).
    """
    with _csv_errors(path):
        return pa_csv.read_csv(
            path, parse_options=_PARSE, convert_options=_conversion(path, required, categorical, optional)
        )


def stream_table(
    path: Path, required: Sequence[str], categorical: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The same a stretch of rows at a time, for tables that should not be in memory as a whole."""
    with _csv_errors(path):
        conversion = _conversion(path, required, categorical, optional)
        with pa_csv.open_csv(path, parse_options=_PARSE, convert_options=conversion) as reader:
            yield from reader


def rows_of(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of such a table one by one: column -> text, "" for an empty field."""
    for batch in stream_table(path, required, optional=optional):
        names = batch.schema.names
        for values in zip(*(strings(batch, name) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


_PARSE = pa_csv.ParseOptions(newlines_in_values=True)


def _conversion(
    path: Path, required: Sequence[str], categorical: Sequence[str], optional: Sequence[str]
) -> pa_csv.ConvertOptions:
    with pa_csv.open_csv(path, parse_options=_PARSE) as reader:
        present = reader.schema.names
    absent = [name for name in (*required, *categorical) if name not in present]
    if absent:
        raise DataError(
            f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(present[:40])}",
            "give the table as it was published",
        )
    wanted = [name for name in (*required, *categorical, *optional) if name in present]
    types = {name: pa.dictionary(pa.int32(), pa.string()) if name in categorical else pa.string() for name in wanted}
    return pa_csv.ConvertOptions(column_types=types, include_columns=wanted, null_values=[""], strings_can_be_null=True)


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "check the path")
    try:
        yield
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:  # the last for the names of the columns
        raise DataError(
            f"{path} is not a readable CSV table: {error}", "give the table as it was published, in UTF-8"
        ) from None


def strings(table: pa.Table | pa.RecordBatch, column: str) -> list[str]:
    """A string column without nulls: an empty field becomes ""."""
    return table.column(column).fill_null("").to_pylist()


def file_facts(path: Path, rows: int) -> dict[str, Any]:
    """Provenance of a table for the manifest: name without folder, rows, sha256."""
    return {"file": path.name, "rows": rows, "sha256": sha256_of(path)}


def read_labels(path: Path, id_column: str) -> tuple[dict[str, Labels], int]:
    """A label CSV (columns `id_column`, label_set, label; one row per label) -> id -> label set -> codes, and the number of rows.

    An empty label says "labelled in this set, with none of its codes". Equal labellings share one object.
    """
    table = read_table(path, (id_column, "label_set", "label"))
    collected: dict[str, dict[str, list[str]]] = {}
    for record, label_set, label in zip(
        strings(table, id_column), strings(table, "label_set"), strings(table, "label"), strict=True
    ):
        if not record or not label_set:
            raise DataError(f"{path}: a row without {id_column} or label_set", "fill both in every row")
        codes = collected.setdefault(record, {}).setdefault(label_set, [])
        if label and label not in codes:
            codes.append(label)
    shared: dict[tuple[tuple[str, tuple[str, ...]], ...], Labels] = {}
    result: dict[str, Labels] = {}
    for record, sets in collected.items():
        labels = tuple((name, tuple(codes)) for name, codes in sorted(sets.items()))
        result[record] = shared.setdefault(labels, dict(labels))
    return result, table.num_rows


def label_set_names(labels: Iterable[Labels]) -> tuple[str, ...]:
    return tuple(sorted({name for sets in labels for name in sets}))


def read_ecg(path: Path, key: str, *, source: str, extra: Mapping[str, Any] | None = None, **fields: Any) -> EcgRecord:
    """Read, reorder and assess the WFDB record at `path` (no suffix); `fields` go to the EcgRecord as they are.

    Raises RecordRejected as `read_wfdb` and `standard_leads` do, and "no-signal" when no lead holds a signal.
    """
    return assemble(read_wfdb(path), str(path), key, source=source, extra=extra, **fields)


def assemble(
    signal: WfdbSignal, where: str, key: str, *, source: str, extra: Mapping[str, Any] | None = None, **fields: Any
) -> EcgRecord:
    """A signal, however it was read, as the EcgRecord `key`: leads reordered, quality assessed. `where` names the record in errors.

    Raises RecordRejected as `standard_leads` does, "bad-format" for a sampling rate outside 10 Hz to 100 kHz, and "no-signal" when no lead holds a
    signal.
    """
    if not RATE_RANGE[0] <= signal.sampling_rate <= RATE_RANGE[1]:  # false for NaN too
        raise RecordRejected("bad-format", f"{where}: a sampling rate of {signal.sampling_rate:g} Hz is that of no ECG")
    leads = standard_leads(signal, where)
    flags = quality.merge(leads.flags, quality.assess(leads.counts, leads.gain, leads.lead_mask, signal.sampling_rate))
    lead_mask = quality.usable(leads.lead_mask, flags)
    if not lead_mask.any():
        recorded = int(np.count_nonzero(leads.lead_mask))
        raise RecordRejected("no-signal", f"{where}: all {recorded} recorded leads are flat or without values")
    notes = dict(extra or {})
    if leads.other_channels:
        notes["other_channels"] = list(leads.other_channels)
    return EcgRecord(
        key=key,
        counts=leads.counts,
        gain=leads.gain,
        sampling_rate=signal.sampling_rate,
        lead_mask=lead_mask,
        quality=flags,
        source=source,
        extra=notes,
        **fields,
    )
