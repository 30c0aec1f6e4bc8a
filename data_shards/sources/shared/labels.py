"""Labels from outside: a table with a row per label, for data sets that publish their records and their labels
apart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import read_table, strings
from cardialign.data_shards.sources.shared.cells import LabelWords
from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

Labels = dict[str, tuple[str, ...]]
"""Label set -> codes of one record."""


def read_labels(path: Path, id_column: str) -> tuple[dict[str, Labels], int]:
    """A label CSV (columns `id_column`, label_set, label; one row per label) -> id -> label set -> codes, and the
    number of rows.

    An empty label says "labelled in this set, with none of its codes". Equal labellings share one object. Labels that
    look like several, or like one label in two cases, are told.

    Raises DataError for a row without record or label set, and for a label set whose name an index cannot hold.
    """
    table = read_table(path, (id_column, "label_set", "label"))
    collected: dict[str, dict[str, list[str]]] = {}
    words: dict[str, LabelWords] = {}
    several: Counter[str] = Counter()
    columns = (strings(table, name) for name in (id_column, "label_set", "label"))
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
        if label:
            words[label_set].see((label,))
            several[label] += "|" in label or label[:1] + label[-1:] in ("[]", "{}")
        codes = collected.setdefault(record, {}).setdefault(label_set, [])
        if label and label not in codes:
            codes.append(label)
    for label_set, seen in words.items():
        seen.tell(path.name, label_set)
    if several.total():
        shown = ", ".join(f"{label[:60]!r} x {times}" for label, times in several.most_common(EXAMPLES) if times)
        log.warning("labels source=%s look like several in one row, write a row for each: %s", path.name, shown)
    shared: dict[tuple[tuple[str, tuple[str, ...]], ...], Labels] = {}
    result: dict[str, Labels] = {}
    for record, sets in collected.items():
        labels = tuple((name, tuple(codes)) for name, codes in sorted(sets.items()))
        result[record] = shared.setdefault(labels, dict(labels))
    return result, table.num_rows


def label_set_names(labels: Iterable[Labels]) -> tuple[str, ...]:
    return tuple(sorted({name for sets in labels for name in sets}))
