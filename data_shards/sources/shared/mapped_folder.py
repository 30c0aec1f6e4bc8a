"""Folders of records with a table of the user's own: which column means what is said by options, never guessed from
names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.plugins import did_you_mean
from cardialign.data_shards.reading.tables import columns_of, file_facts, rows_of
from cardialign.data_shards.reading.wfdb.leads import row_of
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.report_text import clean_statements, one_spelling
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import KEY_PATTERN
from cardialign.data_shards.sources.shared.cells import LabelWords, Marks, labels_of, one_cell
from cardialign.data_shards.sources.shared.demographics import (
    AGE_UNITS,
    age_in_years,
    iso_time,
    says_something,
    sex_in_words,
)
from cardialign.data_shards.sources.shared.folder import RecordFolder
from cardialign.data_shards.sources.shared.ids import fold_number, plain_id
from cardialign.data_shards.sources.shared.join import TextRows, stretches
from cardialign.data_shards.sources.shared.matches import EXAMPLES, STOP_BELOW
from cardialign.data_shards.sources.shared.patients import ALONE

log = logging.getLogger(__name__)

UNDERSTOOD = {
    "age": "numbers with or without a unit (61, 16 mo, 572d)",
    "time": "times that begin with the year (2021-03-04 08:00)",
}

COLUMN_OPTIONS: dict[str, str] = {
    "key_column": "column of the table with the record's name (default: the file's name)",
    "path_column": "column with the record's file, relative to the root (default: found by its name)",
    "report_column": "column with the report",
    "labels_column": "column with the labels; several of them with commas",
    "patient_column": "column with the patient's id (default: every record is a patient of its own)",
    "age_column": "column with the age: years, or 16 mo, 572d",
    "sex_column": "column with the sex: words, or see --sex-values",
    "fold_column": "column with the fold, 1 and up (default: by patient hash)",
    "time_column": "column with date and time of the recording",
}


class MappedFolder(RecordFolder):
    """Base of the readers whose table is mapped by options.

    A subclass implements `_files` (paths found in the folder, as entries have them), `_tidy` (a path of the table ->
    the same form), `_names_of` (what a table may call a file) and may add to `_from_file` what the file itself says.

    Every option keeps its text, so that `describe` can repeat how a set was read.
    """

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
        table: str | Path | None = None,
        lead_names: str = "",
        **mapping: str,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        self._lead_names = _lead_names(lead_names, self.name)
        self._table = self._table_option("record", table) if table else None
        self._mapping = {name: str(value) for name, value in mapping.items()}
        self._columns = {name: value for name, value in self._mapping.items() if name in COLUMN_OPTIONS}
        self._sexes = self._sex_values()
        self._label_set = self._mapping.get("label_set", "labels")
        if self._table is None and self._mapping:
            raise UsageError(
                f"{self.name}: {next(iter(self._mapping))} is given without a table",
                "name the CSV with --table",
            )
        if self._table is not None and not {"key_column", "path_column"} & self._columns.keys():
            raise UsageError(
                f"{self.name}: the table has no key", "say which column names the record: key_column or path_column"
            )
        if self._mapping.get("age_unit", "years") not in AGE_UNITS:
            raise UsageError(
                f"{self.name}: age_unit is {self._mapping['age_unit']!r}", f"choose one of {', '.join(AGE_UNITS)}"
            )
        if not KEY_PATTERN.fullmatch(self._label_set):
            raise UsageError(
                f"{self.name}: label_set is {self._label_set!r}", "name it with letters, digits, '-' and '_'"
            )
        if "labels_column" in self._columns:
            own, self.label_sets = self.label_sets, (self._label_set,)
            self._add_label_sets(own)

    @classmethod
    def options(cls) -> dict[str, str]:
        return (
            super().options()
            | {"table": "CSV with one row per record, its columns named by the following options"}
            | COLUMN_OPTIONS
            | {
                "report_separator": (
                    "what stands between the statements of a report (default: the report is one statement)"
                ),
                "label_separator": "what stands between labels (default: |)",
                "label_set": "name of the label set (default: labels)",
                "sex_values": "meaning of the sex column, for example 0=male,1=female",
                "age_unit": "unit of ages without one: years, months, weeks or days (default: years)",
                "lead_names": "standard leads under other names, for example MLII=II,CH1=I (default: none; channels "
                "that are no standard lead are left out and named)",
            }
        )

    def _files(self) -> Iterator[str]:
        raise NotImplementedError

    def _tidy(self, path: str) -> str:
        raise NotImplementedError

    def _names_of(self, path: str) -> list[str]:
        """What a table may call the file, always as many names, the likeliest first."""
        raise NotImplementedError

    def _from_file(self, path: str) -> dict[str, Any]:
        """What a record's own file says about it; the table overrules it where it says something."""
        return {}

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        if self._table is None:
            for path in self._files():
                yield path, None, self._from_file(path)
            return
        rows = self._rows(self._table)
        if "path_column" in self._columns:
            for row in rows:
                path = self._tidy(self._below_root(row["path_column"]))
                yield (
                    path,
                    plain_id(row["key_column"]) if "key_column" in row else None,
                    self._of_both(path, row),
                )
            return
        yield from self._joined(rows)

    def _of_both(self, path: str, row: Mapping[str, str] | None) -> dict[str, Any]:
        """What the file says, overruled by its row where that says something. A word of the row that is not understood
        leaves open what it contradicts: then neither counts."""
        told, meta = self._from_file(path), {} if row is None else self._meta(row)
        self._compare(told, meta)
        return told | meta

    def _joined(self, rows: Iterable[dict[str, str]]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        """Files found in the folder, each with the row of its name."""
        assert self._table is not None
        by_key = TextRows(rows, tuple(self._columns), "key_column")
        firsts, times = by_key.runs()
        doubled, unused = np.zeros((2, len(by_key)), dtype=bool)
        doubled[firsts], unused[firsts] = times > 1, True
        names = [text[0] for text in zip(by_key.ids.to_pylist(), range(EXAMPLES), strict=False)]
        match = self._join("rows of the table", self._table, by_key.distinct, row_names=names)
        for paths in stretches(self._files()):
            found = self._rows_of(by_key, paths)
            match.add_all(paths, (found >= 0).tolist())
            for path, place, row in zip(paths, found.tolist(), by_key.take(found), strict=True):
                if row is not None and doubled[place]:  # no harm in rows of another folder's files
                    raise DataError(
                        f"{self._table}: {row['key_column']!r} occurs in more than one row",
                        "keep one row per record, or name files by path_column",
                    )
                yield path, None, self._of_both(path, row)
            unused[found[found >= 0]] = False
        left = np.flatnonzero(unused)
        if left.size:
            some = [row["key_column"] for row in by_key.take(left[:EXAMPLES]) if row is not None]
            log.warning(
                "join by name source=%s rows without a file=%d of=%d: %s",
                self.name,
                left.size,
                by_key.distinct,
                ", ".join(map(repr, some)),
            )

    def _rows_of(self, by_key: TextRows, paths: list[str]) -> np.ndarray:
        """Row of each file, by the first of its names that the table has; -1 for none."""
        found = np.full(len(paths), -1, dtype=np.int64)
        for names in zip(*(self._names_of(path) for path in paths), strict=True):
            open_places = np.flatnonzero(found < 0)
            if not open_places.size:
                break
            found[open_places] = by_key.find([names[at] for at in open_places.tolist()])
        return found

    def _rows(self, table: Path) -> Iterator[dict[str, str]]:
        unknown: Counter[str] = Counter()
        strange: dict[str, Counter[str]] = {"age": Counter(), "time": Counter()}
        marks, labels, blank = Marks(self.name), LabelWords(), 0
        number = 0
        there = self._columns_there(table)
        wanted = tuple(dict.fromkeys(name for names in there.values() for name in names))
        for number, columns in enumerate(rows_of(table, wanted), start=1):
            row = self._row(columns, there, f"{table}: row {number}")
            if not any(row.values()):
                blank = blank or number
                continue  # a spreadsheet's empty rows at the end
            if blank:
                raise DataError(f"{table}: row {blank} is empty", "fill it in, or take it out")
            for option in ("key_column", "path_column"):
                if option in row and not plain_id(row[option]):
                    raise DataError(
                        f"{table}: row {number} has nothing in {self._columns[option]!r}", "fill it in every row"
                    )
            if row.get("sex_column") and self._sex(row["sex_column"]) is None:
                unknown[row["sex_column"]] += 1
            for what, understood in (("age", self._age), ("time", iso_time)):
                text = row.get(f"{what}_column", "")
                if text and understood(text) is None:
                    strange[what][text[:40]] += 1
            cell = row.get("labels_column", "")
            if "labels_column" in row:
                labels.see(labels_of(cell, self._mapping.get("label_separator"), f"{table}: row {number}"))
            mark = self._mapping.get("label_separator")
            listed = not mark and cell[:1] + cell[-1:] == "[]"
            marks.see("label", "" if listed else cell, mark or "|")
            marks.see("report", row.get("report_column", ""), self._mapping.get("report_separator") or "")
            yield row
        number = blank - 1 if blank else number
        self._facts["records"] = file_facts(table, number)
        if unknown:
            log.warning("unknown sex source=%s values=%s: say what they mean with sex_values", self.name, dict(unknown))
        for what, words in strange.items():
            if words:
                some = ", ".join(f"{word!r} x {times}" for word, times in words.most_common(EXAMPLES))
                log.warning(
                    "unknown %s source=%s rows=%d of=%d, left out: %s; read are %s",
                    what, self.name, words.total(), number, some, UNDERSTOOD[what],
                )  # fmt: skip
        marks.tell()
        labels.tell(self.name, self._columns.get("labels_column", ""))

    def _row(self, columns: Mapping[str, str], there: Mapping[str, tuple[str, ...]], where: str) -> dict[str, str]:
        """Option -> what its column says in this row, its columns where there are several."""
        row = {option: columns[names[0]].strip() for option, names in there.items()}
        if len(there.get("labels_column", ())) > 1:
            cells = [columns[name].strip() for name in there["labels_column"]]
            row["labels_column"] = one_cell(cells, self._mapping.get("label_separator") or "|", where)
        return row

    def _columns_there(self, table: Path) -> dict[str, tuple[str, ...]]:
        """Option -> the columns of the table that it names; more than one of labels alone. Raises UsageError where the
        table has not what an option names."""
        there, found = columns_of(table), {}
        for option, name in self._columns.items():
            several = tuple(each.strip() for each in name.split(","))
            if option == "labels_column" and name not in there and set(several) <= set(there):
                found[option] = several
            elif name in there or len(there) < 2:  # one column alone: another separator, which is told as such
                found[option] = (name,)
            else:
                lacking = next((each for each in several if each not in there), name) if len(several) > 1 else name
                raise UsageError(
                    f"{self.name}: {option} is {name!r:.100}: {table} has no column {lacking!r:.60}"
                    f"{did_you_mean(lacking, there)}",
                    f"its columns are {', '.join(there)[:500]}",
                )
        return found

    def _meta(self, row: Mapping[str, str]) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        if "report_column" in row:
            separator, text = self._mapping.get("report_separator"), row["report_column"]
            meta["statements"] = clean_statements(map(one_spelling, text.split(separator) if separator else (text,)))
        if row.get("labels_column"):
            labels = labels_of(row["labels_column"], self._mapping.get("label_separator"), str(self._table))
            if labels is not None:
                meta["labels"] = {self._label_set: labels}
        if "patient_column" in row:
            # who is not named is a patient of his own, whatever numbers patients have
            record = row.get("key_column") or row.get("path_column")
            meta["patient"] = self._patient_or(f"{ALONE}{record}", row["patient_column"])
        if says_something(row.get("age_column", "")):
            meta["age_years"] = self._age(row["age_column"])
        if self._says_sex(row.get("sex_column", "")):
            meta["sex"] = self._sex(row["sex_column"])
        if says_something(row.get("time_column", "")):
            meta["acquired"] = iso_time(row["time_column"])
        if "fold_column" in row:
            meta["fold"] = fold_number(row["fold_column"], str(self._table))
        return meta

    def _described(self) -> dict[str, Any]:
        return dict(self._mapping) | ({"lead_names": self._lead_names} if self._lead_names else {})

    def _called(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names of channels, those of the option `lead_names` as the leads that they are said to be."""
        return tuple(self._lead_names.get(name.strip().casefold(), name) for name in names)

    def _below_root(self, path: str) -> str:
        inside = Path(path.replace("\\", "/"))
        if inside.is_absolute() and inside.is_relative_to(self.root.absolute()):
            inside = inside.relative_to(self.root.absolute())
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(
                f"{self._table}: {path!r} does not lie under the root {self.root}", "give paths relative to the root"
            )
        return inside.as_posix()

    def _age(self, text: str) -> float | None:
        return age_in_years(text, self._mapping.get("age_unit", "years"))

    def _sex(self, text: str) -> str | None:
        return self._sexes.get(plain_id(text)) if self._sexes else sex_in_words(text)

    def _says_sex(self, text: str) -> bool:
        return says_something(text) or self._sex(text) is not None

    def _sex_values(self) -> dict[str, str]:
        result: dict[str, str] = {}
        for pair in filter(None, self._mapping.get("sex_values", "").split(",")):
            value, _, word = pair.partition("=")
            sex = sex_in_words(word)
            if sex is None:
                raise UsageError(
                    f"{self.name}: sex_values is {self._mapping['sex_values']!r}", "write for example 0=male,1=female"
                )
            if result.setdefault(value.strip(), sex) != sex:
                raise UsageError(
                    f"{self.name}: sex_values gives {value.strip()!r} two meanings", "write for example 0=male,1=female"
                )
        return result


def _lead_names(text: str, source: str) -> dict[str, str]:
    """`MLII=II,CH1=I` -> the standard lead of each name in small letters. Raises UsageError."""
    result: dict[str, str] = {}
    for pair in filter(None, map(str.strip, str(text).split(","))):
        name, _, lead = (part.strip() for part in pair.rpartition("="))
        row = row_of(lead)
        if not name or row is None or result.setdefault(name.casefold(), STANDARD_LEADS[row]) != STANDARD_LEADS[row]:
            raise UsageError(
                f"{source}: lead_names is {text!r}: {pair!r} names no standard lead, or another one than before",
                f"write for example MLII=II; the standard leads are {', '.join(STANDARD_LEADS)}",
            )
    return result
