"""ZZU-pECG (Tan et al., Scientific Data 2025): 14,190 ECGs of 11,643 children, newborns to 15 years, 9 or 12 leads, 500
Hz, 5 to 120 s.

A table lists the records, in one of two forms: AttributesDictionary.csv as published (age in days, `572d`; quoted
codes, `'C22';'C23'`; WFDB files), or a records.csv with one .npz per record that holds `signal` (leads, T) in mV (age
as `7.5 yr`, `16 mo`, or years as a float), which is also the layout of a virtual paediatric cohort.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import parse_json
from cardialign.data_shards.reading.arrays import RATES, read_array
from cardialign.data_shards.reading.no_value import without_sentinels
from cardialign.data_shards.reading.tables import file_facts, find_table, read_table, strings
from cardialign.data_shards.reading.voltages import COUNTS_PER_MILLIVOLT, signal_from_millivolts
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.report_text import clean_statements, one_spelling
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import age_in_years, iso_time, sex_in_words
from cardialign.data_shards.sources.shared.folder import RecordFolder, number
from cardialign.data_shards.sources.shared.ids import plain_id
from cardialign.data_shards.sources.shared.matches import STOP_BELOW
from cardialign.data_shards.sources.shared.record import assemble, read_ecg
from cardialign.data_shards.sources.vocabularies import aha as aha_statements

log = logging.getLogger(__name__)

SAMPLING_RATE = 500.0
"""Hz of the published set, for arrays that do not say it."""
_TABLES = ("AttributesDictionary.csv", "records.csv")
_COLUMNS = {  # what is needed -> the columns that hold it, by table form
    "record": ("ECG_ID", "record_id"),
    "path": ("Filename", "path"),
    "patient": ("Patient_ID", "patient_id"),
    "age": ("Age", "age_years", "age"),
    "sex": ("Gender", "sex"),
}
_OPTIONAL = {
    "acquired": ("Acquisition_date", "recorded"),
    "report": ("report",),
    "labels": ("labels",),
    "aha": ("AHA_code",),
    "chn": ("CHN_code",),
    "icd10": ("ICD-10 code",),
    "rate": ("fs",),
    "leads": ("leads",),
}
_ICD = re.compile(r"ICD-10:\s*(.*)", re.IGNORECASE)


class ZzuPecg(RecordFolder):
    """Source "zzu-pecg".

    Label sets: `aha` (codes as given and without their modifiers, findings without a code in words), `icd10` (clinical
    diagnoses, never a report statement), and `chn` or `group` where the table has them. Statements: the table's report,
    else those of the AHA codes.
    """

    name = "zzu-pecg"
    prefix = "zzu"
    label_sets: tuple[str, ...] = ("aha", "icd10", "chn", "group")
    label_id = "record_id"
    suffixes = (".npz",)
    layout = "ZZU-pECG: AttributesDictionary.csv and the WFDB files, or records.csv and .npz files"

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
        table: str | Path | None = None,
        gain: float | str = COUNTS_PER_MILLIVOLT,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        self._gain = number("gain", gain, self.name)
        found = (
            self._table_option("record", table)
            if table
            else next(filter(None, (find_table(self.root, name) for name in _TABLES)), None)
        )
        if found is None:
            raise UserError(
                f"{self.name}: none of {', '.join(_TABLES)} found in {str(root)!r}",
                "name the table of the records with --table",
            )
        self._table = found

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "table": "CSV of the records (default: AttributesDictionary.csv or records.csv in the folder)",
            "gain": f"counts per mV at which signals published in mV are stored (default: {COUNTS_PER_MILLIVOLT:g})",
        }

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        elsewhere = 0
        unknown: Counter[str] = Counter()
        bare: Counter[str] = Counter()
        for row in self._rows():
            file = self._file_of(row["path"])
            if file is None:
                elsewhere += 1
                continue
            meta = _meta(row)
            self._told(
                age=(row["age"], meta["age_years"]),
                sex=(row["sex"], meta["sex"]),
                time=(row["acquired"], meta["acquired"]),
            )
            if "aha" in meta["labels"]:
                unknown.update(code for code in meta["labels"]["aha"] if aha_statements.statement(code) is None)
                bare.update(code for code in meta["labels"]["aha"] if code[:1].isdecimal())
            yield file, plain_id(row["record"]) or None, meta
        if elsewhere:
            log.warning(
                "rows whose files lie outside the folder source=%s rows=%d table=%s",
                self.name,
                elsewhere,
                self._table.name,
            )
        if bare:
            listed = " ".join(f"{code}={count}" for code, count in sorted(bare.items()))
            log.warning(
                "AHA codes without the letter of their category source=%s %s: 22 is a label of its own, beside C22; "
                "write the letters in the table if they are one",
                self.name,
                listed,
            )
        if unknown:
            listed = " ".join(f"{code}={count}" for code, count in sorted(unknown.items()))
            log.warning("codes without a name are kept as labels, without a statement source=%s %s", self.name, listed)

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        path = self.root / entry.path
        if path.suffix != ".npz":
            return read_ecg(path, entry.key, source=self.name, **fields)
        array = read_array(path, "signal")
        rate = array.agreed(entry.meta["rate"], RATES, "the table", str(path)) or SAMPLING_RATE
        leads = array.leads(entry.meta["leads"], "the table", str(path)) or STANDARD_LEADS
        signal = signal_from_millivolts(without_sentinels(array.values), leads, rate, str(path), self._gain)
        return assemble(signal, str(path), entry.key, source=self.name, **fields)

    def _described(self) -> dict[str, Any]:
        return {"gain": self._gain}

    def _rows(self) -> Iterator[dict[str, str]]:
        names = [name for columns in (*_COLUMNS.values(), *_OPTIONAL.values()) for name in columns]
        table = read_table(self._table, (), optional=names)
        self._facts["records"] = file_facts(self._table, table.num_rows)
        chosen = {
            field: next((name for name in columns if name in table.column_names), None)
            for field, columns in (_COLUMNS | _OPTIONAL).items()
        }
        missing = ["/".join(columns) for field, columns in _COLUMNS.items() if chosen[field] is None]
        if missing:
            raise DataError(
                f"{self._table} lacks the columns {', '.join(missing)}", "give the table as it was published"
            )
        columns = {field: strings(table, name) for field, name in chosen.items() if name is not None}
        for values in zip(*columns.values(), strict=True):
            row = dict.fromkeys(_OPTIONAL, "") | dict(zip(columns, values, strict=True))
            row |= {field: row[field].strip(" '\"") for field in _COLUMNS}
            yield row | {"age_unit": "days" if chosen["age"] == "Age" else "years"}

    def _file_of(self, path: str) -> str | None:
        """Path below the root of the file that a row names: relative to the root, to its Child_ecg/ (as published), or
        to a table that lies elsewhere and may serve several folders. None when the file is not in this one. WFDB
        records go without suffix."""
        if "\0" in path:
            raise DataError(f"{self._table}: the path {path!r} holds a NUL", "give the table as it was published")
        root = self.root.resolve()
        suffix = "" if path.endswith(".npz") else ".hea"
        for inside in (path, f"Child_ecg/{path}"):
            if os.path.isfile(root / (inside + suffix)):
                return inside
        whole = (self._table.parent / path).resolve()
        return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else None


def _meta(row: Mapping[str, str]) -> dict[str, Any]:
    listed = {"aha": aha_statements.parse_codes(row["aha"])}
    listed |= {name: _quoted_items(row[name]) for name in ("chn", "icd10")}
    labels = {name: items for name, items in listed.items() if items}
    group, codes = _group_and_codes(row["labels"])
    labels |= {name: items for name, items in (("group", group), ("aha", codes)) if items}
    if "aha" in labels:
        labels["aha"] = aha_statements.with_plain_codes(labels["aha"])
    texts: list[str] = []
    icd: list[str] = []
    for text in _report_items(one_spelling(row["report"])):
        match = _ICD.fullmatch(text)
        (icd if match else texts).append(match[1] if match else text)
    if icd:
        labels["icd10"] = tuple(dict.fromkeys(icd))
    written = [told for code in labels.get("aha", ()) if (told := aha_statements.statement(code))]
    return {
        "statements": clean_statements(texts) or tuple(dict.fromkeys(written)),
        "labels": labels,
        "patient": row["patient"],
        "age_years": age_in_years(row["age"], row["age_unit"]),
        "sex": sex_in_words(row["sex"]),
        "acquired": iso_time(row["acquired"]),
        "rate": _rate(row["rate"]),
        "leads": tuple(row["leads"].split()),
    }


def _rate(text: str) -> float | None:
    """Hz, None where a table has none; a word that is no number is not a number, for which the one record is
    rejected."""
    try:
        return float(text) if text.strip() and text.strip().casefold() != "nan" else None
    except ValueError:
        return math.nan


def _group_and_codes(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`Sinus_Bradycardia|C22|C23` -> the disease group that leads, if one does, and the codes."""
    items = aha_statements.parse_codes(text.replace("|", ";"))
    leading = 1 if items and not aha_statements.is_code(items[0]) else 0
    return items[:leading], items[leading:]


def _quoted_items(text: str) -> tuple[str, ...]:
    """`'C22';'Left ventricular high voltage'` -> items, each once."""
    items = (item.strip(" '\"") for item in text.split(";"))
    return tuple(dict.fromkeys(item for item in items if item and item.casefold() != "null"))


def _report_items(text: str) -> list[str]:
    """Statements of a report: a JSON list of strings, or texts with "|" between them."""
    if text.lstrip().startswith("["):
        try:
            return [item.strip() for item in parse_json(text) if isinstance(item, str)]
        except (ValueError, RecursionError):
            pass
    return [item.strip() for item in text.split("|")]
