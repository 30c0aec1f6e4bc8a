"""The tables of a comparison, in one form for the page, for LaTeX and for readers of commas.

AUROC stands x 100, as in the published grid. Methods x tasks in blocks of one share of the labels each; published rows
come last in a block and are marked. Only figures on the ground of their column enter a mean, or are the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cardialign.cluster.comparison.compare import Comparison, Difference, Entry
from cardialign.cluster.comparison.figure import PUBLISHED_TASKS, Column
from cardialign.cluster.comparison.published import PublishedRow, published

MOST_PAIRS = 6
"""Methods of which all pairs are shown; of more, the differences to the reference."""


@dataclass(frozen=True)
class Cell:
    """text "" is no figure; below: its interval; mark: letter of what is not comparable about it."""

    text: str = ""
    below: str = ""
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """kind: "own", "floor", "published"; note: behind the name, small."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """blocks: heading ("" where there is one block) and its rows; heads: a column each."""

    title: str
    heads: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[Row, ...]], ...]
    notes: tuple[str, ...] = ()


def letters(found: Comparison) -> dict[str, str]:
    """Reason why a figure is not comparable -> its mark: a, b, ... z, aa, ab."""
    reasons = list(dict.fromkeys(entry.marked for _, _, entry in found.marks()))
    return {why: _letter(k) for k, why in enumerate(reasons)}


def marked_lines(found: Comparison) -> list[tuple[str, str, list[str]]]:
    """Mark, reason, and the figures that have it, each with its method and column."""
    told: dict[str, list[str]] = {}
    for method, column, entry in found.marks():
        told.setdefault(entry.marked, []).append(f"{method}, {column}: {points(entry.value)}")
    marks = letters(found)
    return [(marks[why], why, figures) for why, figures in told.items()]


def _letter(k: int) -> str:
    return chr(97 + k) if k < 26 else _letter(k // 26 - 1) + chr(97 + k % 26)


def quality_table(found: Comparison, kind: str, with_published: bool = True) -> Table:
    """Methods x tasks of one kind of evaluation."""
    marks, shares = letters(found), found.shares(kind)
    tasks = sorted({column.task for column in found.columns if column.kind == kind}, key=_order)
    rows = [row for row in published().rows if row.kind == kind] if with_published else []
    if not set(tasks) & set(PUBLISHED_TASKS):
        rows = []
    with_mean = len(tasks) > 1
    blocks = []
    for share in shares:
        columns = [Column(kind, task, share) for task in tasks]
        own = [_row(found, method.name, columns, marks, method.floor) for method in found.methods]
        own = [row for row in own if any(cell.text for cell in row.cells)]
        theirs = [each for row in rows if (each := _published_row(row, columns)) is not None]
        heading = "" if share is None else f"{100 * share:g} % of the labels"
        blocks.append((heading, (*own, *theirs)))
    heads = [PUBLISHED_TASKS.get(task, task) for task in tasks] + (["Mean"] if with_mean else [])
    if not with_mean:
        blocks = [(head, tuple(_without_mean(row) for row in of)) for head, of in blocks]
    return Table(kind[0].upper() + kind[1:], tuple(heads), tuple(blocks))


def _order(task: str) -> tuple[int, str]:
    return Column("zero-shot", task).place[2:]


def _without_mean(row: Row) -> Row:
    return Row(row.name, row.kind, row.cells[:-1], row.note)


def _row(found: Comparison, name: str, columns: Sequence[Column], marks: dict[str, str], floor: bool) -> Row:
    cells = []
    for column in columns:
        entries = found.entries.get((name, column), [])
        cells.append(_cell(entries[0], marks, _is_best(found, entries[0], column)) if entries else Cell())
    mean = found.mean(name, columns)
    cells.append(Cell() if mean is None else Cell(points(mean)))
    return Row(name, "floor" if floor else "own", tuple(cells))


def _is_best(found: Comparison, entry: Entry, column: Column) -> bool:
    values = [other.value for method in found.methods if (other := found.entry(method.name, column)) is not None]
    return not entry.marked and len(values) > 1 and entry.value >= max(values) - 1e-12


def _cell(entry: Entry, marks: dict[str, str], best: bool) -> Cell:
    text = points(entry.value) + ("" if entry.sd is None else f" ± {100 * entry.sd:.2f}")
    return Cell(text, interval(entry.low, entry.high), marks[entry.marked] if entry.marked else "", best)


def _published_row(row: PublishedRow, columns: Sequence[Column]) -> Row | None:
    texts = [row.figures.get(column, "") for column in columns]
    all_six = {column.task for column in columns} == set(PUBLISHED_TASKS)
    mean = row.mean.get(columns[0].share, "") if all_six else ""
    if not any(texts) and not mean:
        return None
    note = "other splits" if row.other_splits else ""
    note += (", " if note and row.rerun else "") + ("reruns differ" if row.rerun else "")
    return Row(row.method, "published", tuple(Cell(text) for text in [*texts, mean]), note)


def pairs_table(found: Comparison, reference: str) -> Table:
    """Paired differences: of few methods every pair, of many each one less the reference."""
    own = [method.name for method in found.methods if not method.floor]
    shown = [each for each in found.differences if _shown(each, reference, own)]
    columns = sorted({each.column for each in shown}, key=lambda column: column.place)
    kinds = list(dict.fromkeys((column.kind, column.share) for column in columns))
    tasks = sorted({column.task for column in columns}, key=_order)
    by = {(each.mine, each.theirs, each.column): each for each in shown}
    place = {method.name: k for k, method in enumerate(found.methods)}
    pairs = sorted({(each.mine, each.theirs) for each in shown}, key=lambda pair: (place[pair[1]], place[pair[0]]))
    blocks = []
    for kind, share in kinds:
        rows = []
        for mine, theirs in pairs:
            cells = tuple(_difference(by.get((mine, theirs, Column(kind, task, share)))) for task in tasks)
            if any(cell.text for cell in cells):
                rows.append(Row(f"{mine} − {theirs}", "own", cells))
        at = "" if share is None else f", {100 * share:g} % of the labels"
        blocks.append((f"{kind[0].upper()}{kind[1:]}{at}", tuple(rows)))
    many = len(own) > MOST_PAIRS
    note = f"Of {len(own)} methods, each less {reference}; all pairs stand in differences.csv." if many else ""
    heads = tuple(PUBLISHED_TASKS.get(task, task) for task in tasks)
    return Table("Paired differences", heads, tuple(blocks), (note,) if note else ())


def _shown(each: Difference, reference: str, own: Sequence[str]) -> bool:
    """A floor is shown beside the reference alone."""
    return reference in (each.mine, each.theirs) or (len(own) <= MOST_PAIRS and {each.mine, each.theirs} <= set(own))


def _difference(each: Difference | None) -> Cell:
    if each is None:
        return Cell()
    known = not math.isnan(each.low)
    clear = known and (each.low > 0 or each.high < 0)
    below = f"{100 * each.low:+z.2f} to {100 * each.high:+z.2f}" if known else ""
    return Cell(_signed(f"{100 * each.value:+z.2f}"), _signed(below), best=clear)


def _signed(text: str) -> str:
    """With a minus, which is no hyphen."""
    return text.replace("-", "−")


def points(value: float) -> str:
    return f"{100 * value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def figure_rows(found: Comparison) -> list[dict[str, Any]]:
    """Every figure with all that stands beside it, published ones too: rows of a table of commas."""
    out = []
    for (method, column), entries in found.entries.items():
        floor = next(each.floor for each in found.methods if each.name == method)
        for entry in entries:
            first = entry.figures[0]
            out.append(
                {
                    "method": method, "row": "floor" if floor else "own", "kind": column.kind, "task": column.task,
                    "share": column.share, "macro_auroc": round(entry.value, 6), "sd": entry.sd, "low": entry.low,
                    "high": entry.high, "seeds": entry.seeds, "records": first.records, "patients": first.patients,
                    "classes": first.classes, "not_comparable": entry.marked, "trained_on": first.seen,
                    "protocol": first.ground.get("protocol"), "source": "; ".join(str(f.source) for f in entry.figures),
                }
            )  # fmt: skip
    columns = set(found.columns)
    for row in published().rows:
        for column, text in row.figures.items():
            if column in columns:
                out.append(
                    {**dict.fromkeys(out[0]), "method": row.method, "row": "published", "kind": column.kind,
                     "task": column.task, "share": column.share, "macro_auroc": round(float(text) / 100, 6),
                     "not_comparable": "; ".join(filter(None, ["published: other records", row.other_splits])),
                     "protocol": row.protocol, "source": row.source}
                )  # fmt: skip
    return out


def difference_rows(found: Comparison) -> list[dict[str, Any]]:
    """Every pair of every column."""
    return [
        {
            "kind": each.column.kind, "task": each.column.task, "share": each.column.share, "mine": each.mine,
            "theirs": each.theirs, "difference": each.value, "low": None if math.isnan(each.low) else each.low,
            "high": None if math.isnan(each.high) else each.high, "records": each.records, "patients": each.patients,
        }
        for each in found.differences
    ]  # fmt: skip
