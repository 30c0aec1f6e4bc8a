"""Labels from outside: a table with a row per label, for data sets that publish their records and their labels
apart."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import columns_of, read_table, strings
from cardialign.data_shards.sources.shared.cells import LabelWords, plain_label, says_no
from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

Labels = dict[str, tuple[str, ...]]
"""Label set -> codes of one record."""
_SEVERAL = re.compile(r"\||^\[.*\]$|^\{.*\}$|[^\s,;\d][,;](?=[^\s,;\d])|;|\n")
"""Marks between labels; a comma before a blank or in a number is one of a sentence (`infarction, old`)."""
PERSONS = ("subject_id", "subject", "patient_id", "patient", "patientid")
"""Columns of a label table that name whose record it is, in any letter case."""


class LabelTable(NamedTuple):
    """labels: id -> label set -> codes. rows: of the table. owners: id -> the patients that its rows name, as written;
    only of ids whose rows name one."""

    labels: dict[str, Labels]
    rows: int
    owners: dict[str, frozenset[str]]


def read_labels(path: Path, id_column: str) -> LabelTable:
    """A label CSV: columns `id_column`, label_set, label; one row per label, and perhaps whose record it is (PERSONS).

    An empty label says "labelled in this set, with none of its codes". Equal labellings share one object. Labels that
    look like several, or like one label in two cases, are told.

    Raises DataError for a row without record or label set, for a label set whose name an index cannot hold, for a code
    that lost digits, and for a further column that says of some rows that they do not hold.
    """
    named = (id_column, "label_set", "label")
    further = [name for name in columns_of(path) if name not in named and name.casefold() not in _NO_VALUES]
    person = next((name for name in further if name.strip().casefold() in PERSONS), "")
    table = read_table(path, (*named, person) if person else named, categorical=[n for n in further if n != person])
    _refuse_values(path, table, [name for name in further if name != person])
    collected: dict[str, dict[str, list[str]]] = {}
    words: dict[str, LabelWords] = {}
    several: Counter[str] = Counter()
    nothing: set[tuple[str, str]] = set()
    columns = (strings(table, name) for name in named)
    for record, label_set, label in zip(*(map(str.strip, column) for column in columns), strict=True):
        if not record and not label_set and not label:
            continue  # a spreadsheet's empty rows
        if not record or not label_set:
            raise DataError(f"{path}: a row without {id_column} or label_set", "fill both in every row")
        if label_set not in words:
            if ":" in label_set or not label_set.isprintable():
                raise DataError(
                    f"{path}: the label set {label_set[:80]!r} holds a colon, or what cannot be shown",
                    "name it with letters, digits, '-' and '_'",
                )
            words[label_set] = LabelWords()
        label = plain_label(label, str(path))
        if label:
            words[label_set].see((label,))
            several[label] += _SEVERAL.search(label) is not None
        codes = collected.setdefault(record, {}).setdefault(label_set, [])
        if not label:
            nothing.add((record, label_set))
        elif label not in codes:
            codes.append(label)
    for label_set, seen in words.items():
        seen.tell(path.name, label_set)
    if several.total():
        shown = ", ".join(f"{label[:60]!r} x {times}" for label, times in several.most_common(EXAMPLES) if times)
        log.warning("labels source=%s look like several in one row, write a row for each: %s", path.name, shown)
    _tell_both(path, sorted(record for record, label_set in nothing if collected[record][label_set]))
    shared: dict[tuple[tuple[str, tuple[str, ...]], ...], Labels] = {}
    result: dict[str, Labels] = {}
    for record, sets in collected.items():
        labels = tuple((name, tuple(codes)) for name, codes in sorted(sets.items()))
        result[record] = shared.setdefault(labels, dict(labels))
    return LabelTable(result, table.num_rows, _owners(table, id_column, person) if person else {})


def _tell_both(path: Path, records: list[str]) -> None:
    if records:
        log.warning(
            "labels source=%s: %d records have a row with an empty label, which says none of them, and rows with "
            "labels, which count: %s",
            path.name,
            len(records),
            ", ".join(repr(name[:60]) for name in records[:EXAMPLES]),
        )


def _owners(table: pa.Table, id_column: str, person: str) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for record, owner in zip(strings(table, id_column), strings(table, person), strict=True):
        if owner.strip():
            found.setdefault(record.strip(), set()).add(owner.strip())
    shared: dict[frozenset[str], frozenset[str]] = {}
    return {record: shared.setdefault(frozenset(each), frozenset(each)) for record, each in found.items()}


_NO_VALUES = {"sex", "gender", "fold", "strat_fold", "age"}
"""Columns whose 0 says nothing of a label."""
_VALUES = {"value", "values", "likelihood", "probability", "prob", "score", "confidence", "weight", "certainty"}
_VALUES |= {"present", "presence", "status", "positive", "assertion", "polarity", "percent", "pct", "result", "answer"}


def _refuse_values(path: Path, table: pa.Table, further: Iterable[str]) -> None:
    """Raises DataError where a column beside the labels is a switch that is off in some rows, or holds numbers of which
    some are 0: a table that was melted from a wide one has a row for what each record has not."""
    for name in further:
        column = table.column(name)
        cells = [str(each) for each in pc.unique(column.cast(pa.string()).drop_null()).to_pylist()]
        numbers = [_number(cell) for cell in cells]
        shares = all(0 <= each <= 1 for each in numbers) and any(0 < each < 1 for each in numbers)
        shares |= bool(cells) and all(cell.rstrip().endswith("%") for cell in cells)
        valued = shares or name.strip().casefold() in _VALUES
        if says_no(cells) or (valued and any(each <= 0 for each in numbers)):
            raise DataError(
                f"{path}: the column {name!r} says of some rows that they do not hold (0), and every row counts as a "
                "label that its record has",
                f"keep the rows of what a record has and leave the column {name!r} out; where a record has none of "
                "them, keep one row with an empty label",
            )
        if valued and len(cells) > 1:
            kept = [each for each in numbers if not math.isnan(each)]
            said = f"{min(kept):g} to {max(kept):g}" if kept else ", ".join(map(repr, cells[:EXAMPLES]))
            log.warning(
                "labels source=%s: every row counts as a label that its record has, whatever the column %r says of it "
                "(%s)", path.name, name, said,
            )  # fmt: skip


def _number(cell: str) -> float:
    word = cell.strip()
    try:
        return float(word.removesuffix("%").rstrip()) / (100 if word.endswith("%") else 1)
    except ValueError:
        return math.nan


class TwoLabellings:
    """Label sets that the data set has itself, and a table of outside labels, too. The table counts where it names the
    record; the others keep what the set says, and one label set is of two makers."""

    def __init__(self, outside: Iterable[Labels]) -> None:
        self._names = set(label_set_names(outside))
        self._both: Counter[str] = Counter()
        self._differ: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()

    def add(self, own: Labels, outside: Labels | None) -> Labels:
        """The labels of one record, of both."""
        for name in self._names.intersection(own):
            if outside is None or name not in outside:
                self._kept[name] += 1
                continue
            self._both[name] += 1
            self._differ[name] += set(own[name]) != set(outside[name])
        return own if outside is None else {**own, **outside}

    def tell(self, source: str) -> None:
        for name in sorted(
            name for name in self._names if self._differ[name] or (self._both[name] and self._kept[name])
        ):
            log.warning(
                "labels source=%s: the set has the label set %r itself; those of the table count for %d records, %d of "
                "which it labels otherwise, and %d keep those of the set; if they are not its corrected labels, "
                "give the table's a name of their own",
                source,
                name,
                self._both[name],
                self._differ[name],
                self._kept[name],
            )


def label_set_names(labels: Iterable[Labels]) -> tuple[str, ...]:
    return tuple(sorted({name for sets in labels for name in sets}))
