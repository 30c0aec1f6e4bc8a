"""Folders of records with a table of the user's own: which column means what is said by options, never guessed from
names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.reading.tables import file_facts, rows_of
from cardialign.data_shards.report_text import clean_statements
from cardialign.data_shards.sources.base import KEY_PATTERN
from cardialign.data_shards.sources.shared.folder import AGE_UNITS, RecordFolder, age_in_years, sex_in_words
from cardialign.data_shards.sources.shared.join import TextRows, stretches

log = logging.getLogger(__name__)

COLUMN_OPTIONS: dict[str, str] = {
    "key_column": "column of the table with the record's name (default: the file's name)",
    "path_column": "column with the record's file, relative to the root (default: found by its name)",
    "report_column": "column with the report",
    "labels_column": "column with the labels",
    "patient_column": "column with the patient's id (default: every record is a patient of its own)",
    "age_column": "column with the age: years, or 16 mo, 572d",
    "sex_column": "column with the sex: words, or see sex_values",
    "fold_column": "column with the fold, 1 and up (default: by patient hash)",
    "time_column": "column with date and time of the recording",
}


class MappedFolder(RecordFolder):
    """Base of the readers whose table is mapped by options.

    A subclass implements `_files` (paths found in the folder, as entries have them), `_tidy` (a path of the table ->
    the same form) and may add to `_from_file` what the file itself says.

    Every option keeps its text, so that `describe` can repeat how a set was read.
    """

    def __init__(
        self,
        root: Path,
        *,
        salt: str = "",
        labels: str | Path | None = None,
        table: str | Path | None = None,
        **mapping: str,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels)
        self._table = self._table_option("record", table) if table else None
        self._mapping = {name: str(value) for name, value in mapping.items()}
        self._columns = {name: value for name, value in self._mapping.items() if name in COLUMN_OPTIONS}
        self._sexes = self._sex_values()
        self._label_set = self._mapping.get("label_set", "labels")
        if self._table is None and self._mapping:
            raise UsageError(
                f"{self.name}: {next(iter(self._mapping))} is given without a table",
                "name the CSV with the option table",
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
            self.label_sets = tuple(dict.fromkeys((self._label_set, *self.label_sets)))

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
            }
        )

    def _files(self) -> Iterator[str]:
        raise NotImplementedError

    def _tidy(self, path: str) -> str:
        raise NotImplementedError

    def _from_file(self, path: str) -> dict[str, Any]:
        """What a record's own file says about it; the table overrules it."""
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
                yield path, row.get("key_column"), self._from_file(path) | self._meta(row)
            return
        yield from self._joined(rows)

    def _joined(self, rows: Iterable[dict[str, str]]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        """Files found in the folder, each with the row of its name."""
        by_key = TextRows(rows, tuple(self._columns), "key_column")
        firsts, times = by_key.runs()
        doubled, unused = np.zeros((2, len(by_key)), dtype=bool)
        doubled[firsts], unused[firsts] = times > 1, True
        without = 0
        for paths in stretches(self._files()):
            names = [PurePath(path).name for path in paths]
            by_name, by_stem = by_key.find(names), by_key.find([name.partition(".")[0] for name in names])
            found = np.where(by_name >= 0, by_name, by_stem)
            for path, place, row in zip(paths, found.tolist(), by_key.take(found), strict=True):
                if row is not None and doubled[place]:  # no harm in rows of another folder's files
                    raise DataError(
                        f"{self._table}: {row['key_column']!r} occurs in more than one row",
                        "keep one row per record, or name files by path_column",
                    )
                without += row is None
                yield path, None, self._from_file(path) | (self._meta(row) if row is not None else {})
            unused[found[found >= 0]] = False
        left = int(np.count_nonzero(unused))
        if left or without:
            log.warning(
                "join by name source=%s files without a row=%d rows without a file=%d (%s)",
                self.name,
                without,
                left,
                pc.min(by_key.ids.filter(pa.array(unused))).as_py() if left else "",
            )
        if left and left == firsts.size:
            raise DataError(
                f"{self._table}: no name in {self._columns['key_column']!r} is that of a file under {self.root}",
                "check key_column",
            )

    def _rows(self, table: Path) -> Iterator[dict[str, str]]:
        unknown: Counter[str] = Counter()
        number = 0
        for number, columns in enumerate(rows_of(table, tuple(dict.fromkeys(self._columns.values()))), start=1):
            row = {option: columns[name].strip() for option, name in self._columns.items()}
            for option in ("key_column", "path_column"):
                if row.get(option) == "":
                    raise DataError(
                        f"{table}: row {number} has nothing in {self._columns[option]!r}", "fill it in every row"
                    )
            if row.get("sex_column") and self._sex(row["sex_column"]) is None:
                unknown[row["sex_column"]] += 1
            yield row
        self._facts["records"] = file_facts(table, number)
        if unknown:
            log.warning("unknown sex source=%s values=%s: say what they mean with sex_values", self.name, dict(unknown))

    def _meta(self, row: Mapping[str, str]) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        if "report_column" in row:
            separator = self._mapping.get("report_separator")
            meta["statements"] = clean_statements(
                row["report_column"].split(separator) if separator else (row["report_column"],)
            )
        if row.get("labels_column"):
            words = (word.strip() for word in row["labels_column"].split(self._mapping.get("label_separator") or "|"))
            meta["labels"] = {self._label_set: tuple(dict.fromkeys(word for word in words if word))}
        if "patient_column" in row:
            # A column with gaps may have been written as floats. Who is not named is a patient of his own, whatever
            # numbers patients have.
            record = row.get("key_column") or row.get("path_column")
            meta["patient"] = row["patient_column"].removesuffix(".0") or f"record {record}"
        if "age_column" in row:
            meta["age_years"] = age_in_years(row["age_column"], self._mapping.get("age_unit", "years"))
        if "sex_column" in row:
            meta["sex"] = self._sex(row["sex_column"])
        if row.get("time_column"):
            meta["acquired"] = row["time_column"].replace(" ", "T")
        if "fold_column" in row:
            fold = row["fold_column"].removesuffix(".0")
            if not fold.isdigit():
                raise DataError(
                    f"{self._table}: the fold {row['fold_column']!r} is no number", "give folds as whole numbers"
                )
            meta["fold"] = int(fold)
        return meta

    def _described(self) -> dict[str, Any]:
        return dict(self._mapping)

    def _below_root(self, path: str) -> str:
        inside = Path(path.replace("\\", "/"))
        if inside.is_absolute() and inside.is_relative_to(self.root.absolute()):
            inside = inside.relative_to(self.root.absolute())
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(
                f"{self._table}: {path!r} does not lie under the root {self.root}", "give paths relative to the root"
            )
        return inside.as_posix()

    def _sex(self, text: str) -> str | None:
        return self._sexes.get(text.removesuffix(".0")) if self._sexes else sex_in_words(text)

    def _sex_values(self) -> dict[str, str]:
        result = {}
        for pair in filter(None, self._mapping.get("sex_values", "").split(",")):
            value, _, word = pair.partition("=")
            sex = sex_in_words(word)
            if sex is None:
                raise UsageError(
                    f"{self.name}: sex_values is {self._mapping['sex_values']!r}", "write for example 0=male,1=female"
                )
            result[value.strip()] = sex
        return result
