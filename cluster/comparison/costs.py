"""Cost and quality side by side, and in which settings the runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cardialign.cluster.comparison.compare import Comparison
from cardialign.cluster.comparison.cost import Cost
from cardialign.cluster.comparison.figure import Column
from cardialign.cluster.comparison.methods import Member
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shown import shown

LONGEST_VALUE, DEEPEST = 160, 20
NOTES = (
    "Hours are those of the steps in the trace, pauses included, times the ranks; start-up, evaluation and lost steps "
    "are not in them, and on CPUs a rank counts as one core. A study's hours are CPU time of a cell, with its "
    "scoring.",
    "Records are those trained on, repeats included. GFLOP: forward pass of one record through the ECG encoder, a "
    "multiply-add as 2.",
    "Energy is not measured by a run.",
)


@dataclass(frozen=True)
class CostRow:
    """One training run, or variant. price: of the whole run; quality: per cent of the column that is asked for."""

    name: str
    what: str
    cost: Cost
    price: float | None
    quality: float | None


def prices_of(texts: Sequence[str]) -> dict[str, float]:
    """`2.5`, or `H100=2.5` for each kind of device -> by kind, "" for all. Raises UsageError."""
    prices: dict[str, float] = {}
    for text in texts:
        kind, equals, amount = text.rpartition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (equals and not kind.strip()):
            raise UsageError(
                f"--price {shown(text)[:60]} is no price of a device and hour",
                "write 2.5, or H100=2.5 and CPU=0.04",
            )
        prices[_kind(kind.strip())] = value
    return prices


def _kind(word: str) -> str:
    return word.upper() if word.lower() in ("h100", "h200", "a100", "l40s", "cpu") else word


def check_prices(prices: Mapping[str, float], members: Sequence[Member]) -> None:
    """One price for devices of several kinds would be wrong for all but one. Raises UsageError."""
    kinds = sorted({each.source.cost.kind for each in members if each.source.cost and each.source.cost.kind})
    if "" in prices and len(kinds) > 1:
        raise UsageError(
            f"--price is given once, and the runs were on {', '.join(kinds)}",
            f"give one for each: {' '.join(f'--price {kind}=AMOUNT' for kind in kinds)}",
        )
    if wrong := [kind for kind in prices if kind and kind not in kinds]:
        raise UsageError(f"--price {wrong[0]}=...: no run was on {wrong[0]}", f"there are {', '.join(kinds) or 'none'}")


def quality_column(found: Comparison) -> Column | None:
    """What quality is in the picture: the column that most methods of known cost have a comparable figure in."""
    costly = [each.name for each in found.methods if any(_hours(member) for member in each.members)]

    def having(column: Column) -> int:
        return sum(found.entry(name, column) is not None for name in costly)

    best = max(found.columns, key=lambda column: (having(column), column.share or 0), default=None)
    return best if best is not None and having(best) else None


def _hours(member: Member) -> float | None:
    return None if member.source.cost is None else member.source.cost.hours


def cost_rows(found: Comparison, prices: Mapping[str, float], column: Column | None) -> list[CostRow]:
    """Every run, encoder and variant of which something is known, in the order of the methods."""
    out = []
    for method in found.methods:
        for member in method.members:
            cost = member.source.cost
            if method.floor or cost is None or cost == Cost():
                continue
            entry = None if column is None else found.entry(method.name, column)
            held = [] if entry is None or column is None else member.figures.get(column, [])
            own = [each for each in held if entry is not None and any(each is other for other in entry.figures)]
            quality = 100 * own[0].value if own else None
            out.append(CostRow(member.name, member.source.what, cost, cost.price(prices), quality))
    return out


def cost_table_rows(rows: Sequence[CostRow], currency: str) -> list[dict[str, Any]]:
    """For readers of commas; None: not measured."""
    price = f"price_{currency}" if currency else "price"
    return [
        {
            "name": row.name, "what": row.what, "device": row.cost.kind, "devices": row.cost.devices,
            "device_hours": row.cost.hours, "records_trained": row.cost.records,
            "records_per_second": row.cost.records_per_second, "encoder_parameters": row.cost.parameters,
            "trained_parameters": row.cost.trained_parameters, "gflop_per_record": row.cost.gflop,
            "training_gflop_per_record": row.cost.train_gflop, price: row.price, "kwh": row.cost.kwh,
            "device_hours_per_million": row.cost.per_million(row.cost.hours),
            f"{price}_per_million": row.cost.per_million(row.price),
            "kwh_per_million": row.cost.per_million(row.cost.kwh), "macro_auroc_x100": row.quality,
        }
        for row in rows
    ]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A key in which runs differ: each value and who has it."""

    key: str
    values: tuple[tuple[str, tuple[str, ...]], ...]


def settings_that_differ(configs: Mapping[str, Mapping[str, Any]], absent: str = "not set") -> list[Setting]:
    """Name -> resolved configuration, compared key by key; [] for fewer than two."""
    flat = {name: dict(_flat(config)) for name, config in configs.items()}
    keys = sorted({key for each in flat.values() for key in each})
    out = []
    for key in keys:
        values: dict[str, list[str]] = {}
        for name, each in flat.items():
            values.setdefault(each.get(key, absent), []).append(name)
        if len(values) > 1:
            out.append(Setting(key, tuple((value, tuple(names)) for value, names in values.items())))
    return out


def _flat(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        word = shown(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            out += _flat(value, f"{word}.", depth + 1) if depth < DEEPEST else [(word, "nested too deeply")]
        else:
            text = shown(value if isinstance(value, str) else json.dumps(value, default=str))
            out.append((word, text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"))
    return out
