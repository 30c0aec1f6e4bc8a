"""The figures of a grid: as data (`to_dict`), as rows of a table of commas (`flat`), as text (`table`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cardialign.pretrain.evaluation.grid.plan import OpenTask
from cardialign.pretrain.evaluation.ledger import told
from cardialign.pretrain.evaluation.probing.report import Key, ProbeResult, Row, joined
from cardialign.pretrain.evaluation.scored import ScoredRecords

Scored = Callable[[str, float, Mapping[str, Any]], dict[Key, ScoredRecords]]
"""Task, share and finished cell -> its scores, where they are kept (`GridFolder.scored`)."""

COLUMNS = (
    "task", "share", "system", "read_by", "macro", "sd", "low", "high", "less_encoder", "less_low", "less_high",
    "classes", "records", "seeds", "macro_frequent", "classes_frequent", "ledger", "test_opened", "missing",
)  # fmt: skip


@dataclass(frozen=True)
class GridResult:
    """facts: what the grid is of; tasks: task -> its figures at the shares that have some; missing: task, share (None:
    all of them) and why; opened: the tasks as they were asked for."""

    facts: dict[str, Any]
    tasks: dict[str, ProbeResult]
    missing: list[dict[str, Any]]
    opened: Sequence[OpenTask] = ()

    @classmethod
    def of(
        cls,
        facts: dict[str, Any],
        opened: Sequence[OpenTask],
        cells: Mapping[tuple[str, float], Mapping[str, Any]],
        scored: Scored,
    ) -> GridResult:
        """From finished cells as `GridFolder` keeps them."""
        tasks, missing = {}, []
        for each in opened:
            name = each.task.name
            if each.found is None:
                missing.append({"task": name, "share": None, "reason": each.missing})
                continue
            found = [(share, cells[name, share]) for share in facts["shares"]]
            missing += [
                {"task": name, "share": share, "reason": cell["missing"]} for share, cell in found if "missing" in cell
            ]
            results = [_result(cell, share, scored(name, share, cell)) for share, cell in found if "result" in cell]
            if results:
                tasks[name] = joined(results)
        return cls(facts, tasks, missing, opened)

    def to_dict(self) -> dict[str, Any]:
        tasks = {name: result.to_dict() for name, result in self.tasks.items()}
        return {**self.facts, "tasks": tasks, "missing": self.missing, "means": self.means()}

    def means(self) -> list[dict[str, Any]]:
        """Mean over the tasks, of each system, reader and share that has a figure in every one; no other mean."""
        out = []
        for key in self._keys():
            for share in self.facts["shares"]:
                found = self._of(key, share)
                if None not in found and not self._absent():
                    mean = sum(row.macro for row in found if row is not None) / len(found)
                    out.append({"system": key[0], "reader": key[1], "share": share, "macro": mean, "tasks": len(found)})
        return out

    def _keys(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((row.system, row.reader) for task in self.tasks.values() for row in task.rows))

    def _of(self, key: tuple[str, str], share: float) -> list[Row | None]:
        """The row of every task, None where it has none."""
        return [
            next((row for row in task.rows if (row.system, row.reader, row.share) == (*key, share)), None)
            for task in self.tasks.values()
        ]

    def _absent(self) -> list[str]:
        return [each["task"] for each in self.missing if each["task"] not in self.tasks]

    def flat(self) -> list[dict[str, Any]]:
        """One row per cell, system and way of reading, and one per cell without figures. Columns: COLUMNS."""
        rows: list[dict[str, Any]] = [
            {"task": each["task"], "share": each["share"], "missing": each["reason"]} for each in self.missing
        ]
        for name, task in self.tasks.items():
            rows += [_flat(name, task, row) for row in task.rows]
        return [{column: row.get(column) for column in COLUMNS} for row in rows]

    def table(self) -> str:
        parts = [result.table() for result in self.tasks.values()]
        if self.tasks:
            parts.append(self._overview())
        lines = [f"no figure, {_cell(each)}: {each['reason']}" for each in self.missing]
        return "\n\n".join([*parts, "\n".join(lines)] if lines else parts)

    def _overview(self) -> str:
        """Every cell in one table: rows are systems and ways of reading at a share, columns are tasks."""
        names = [*self.tasks, *self._absent()]
        means = {(each["system"], each["reader"], each["share"]): each["macro"] for each in self.means()}
        lines = [["share", "system", "read by", *names, "mean"]]
        for share in self.facts["shares"]:
            for key in self._keys():
                found = ["-" if row is None else f"{row.macro:.3f}" for row in self._of(key, share)]
                mean = f"{means[*key, share]:.3f}" if (*key, share) in means else "-"
                lines.append([f"{100 * share:g} %", *key, *found, *["-"] * len(self._absent()), mean])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        title = f"{self.facts['protocol']}: macro AUROC; a mean stands where every task has a figure"
        return "\n".join([title, *rows])


def _cell(missing: Mapping[str, Any]) -> str:
    share = missing["share"]
    return str(missing["task"]) if share is None else f"{missing['task']} at {100 * share:g} %"


def _flat(name: str, task: ProbeResult, row: Row) -> dict[str, Any]:
    less = row.less_encoder or {}
    mine = [line for line in task.task["ledger"] if line["figure"] in (row.system, "every system")]
    return {
        "task": name,
        "share": row.share,
        "system": row.system,
        "read_by": row.reader,
        "macro": row.macro,
        "sd": row.spread,
        "low": row.interval[0],
        "high": row.interval[1],
        "less_encoder": less.get("value"),
        "less_low": less.get("low"),
        "less_high": less.get("high"),
        "classes": task.task["classes"],
        "records": row.fits[0]["records"],
        "seeds": len(row.fits),
        "macro_frequent": row.frequent["value"],
        "classes_frequent": row.frequent["classes"],
        "ledger": "; ".join(told(mine)),
        "test_opened": task.task["test_opened"]["times"],
    }


def _result(cell: Mapping[str, Any], share: float, scored: dict[Key, ScoredRecords]) -> ProbeResult:
    result = ProbeResult.from_dict(cell["result"])
    return replace(result, scored={share: scored}) if scored else result
