"""Labels from outside: a table with a row per label, for data sets that publish their records and their labels
apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import read_table, strings

Labels = dict[str, tuple[str, ...]]
"""Label set -> codes of one record."""


def read_labels(path: Path, id_column: str) -> tuple[dict[str, Labels], int]:
    """A label CSV (columns `id_column`, label_set, label; one row per label) -> id -> label set -> codes, and the
    number of rows.

    An empty label says "labelled in this set, with none of its codes". Equal labellings share one object.
    """
    table = read_table(path, (id_column, "label_set", "label"))
    collected: dict[str, dict[str, list[str]]] = {}
    columns = (strings(table, name) for name in (id_column, "label_set", "label"))
    for record, label_set, label in zip(*(map(str.strip, column) for column in columns), strict=True):
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
