"""Charts of several runs together: curves with one legend, and points with their names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cardialign.cluster.pages.charts import Frame, Scale, Ticks, nice_ticks, placed, scale_of, smoothed
from cardialign.cluster.pages.page import draw

MOST = 6
"""Curves of one chart: more cannot be told apart."""
MOST_POINTS = 600
"""Of a curve: a longer one is thinned."""
Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, steps, values."""
Point = tuple[str, float, float]
"""Name, across, upwards."""
LONGEST = 26
CHARACTER = 6.6
LINE = 14


def curves_chart(
    series: Sequence[Series], *, title: str, unit: str = "", smooth: bool = False, from_zero: bool = False
) -> str:
    """Up to MOST curves over training steps, told apart by colour and dashes; "" without a finite value."""
    assert len(series) <= MOST
    kept = []
    for name, steps, values in series:
        points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        if points:
            heights = [v for _, v in points]
            heights = smoothed(heights) if smooth and len(points) >= 20 else heights
            every = -(-len(points) // MOST_POINTS)
            kept.append((name, [(s, h) for (s, _), h in zip(points, heights, strict=True)][::every]))
    if not kept:
        return ""
    xs, ys = [s for _, of in kept for s, _ in of], [h for _, of in kept for _, h in of]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if from_zero and low >= 0 else low - margin), high + margin
    x, y = scale_of(min(xs), max(xs), Frame.left, Frame.right), scale_of(low, high, Frame.bottom, Frame.top)
    across = [tick for tick in nice_ticks(min(xs), max(xs), 6) if tick == int(tick)]
    frame = Frame(title, unit, placed(across, x), placed(nice_ticks(low, high, 5), y), "step")
    curves = [(f"s{k + 1}", [(x(s), y(h)) for s, h in of]) for k, (_, of) in enumerate(kept)]
    return draw("curves", frame=frame, curves=curves, names=[name for name, _ in kept])


def scatter_chart(points: Sequence[Point], *, title: str, unit: str, axis: str) -> str:
    """Points with their names; across on a logarithmic scale. "" for fewer than two with an amount above 0."""
    kept = [(name, math.log10(a), u) for name, a, u in points if a > 0 and math.isfinite(a) and math.isfinite(u)]
    if len(kept) < 2:
        return ""
    xs, ys = [a for _, a, _ in kept], [u for _, _, u in kept]
    wide, tall = max(max(xs) - min(xs), 0.3), max(max(ys) - min(ys), 1.0)
    left, right = min(xs) - 0.08 * wide, max(xs) + 0.08 * wide
    x = scale_of(left, right, Frame.left, Frame.right)
    low, high = min(ys) - 0.12 * tall, max(ys) + 0.12 * tall
    y = scale_of(low, high, Frame.bottom, Frame.top)
    frame = Frame(title, unit, _decades(left, right, x), placed(nice_ticks(low, high, 5), y), axis)
    marks = [{"name": name, "x": x(a), "y": y(u), "told": f"{name}: {10**a:.3g}, {u:.2f}"} for name, a, u in kept]
    return draw("scatter", frame=frame, marks=_labelled(marks))


def _labelled(marks: list[dict[str, object]]) -> list[dict[str, object]]:
    """A place for each name, right of its point or left of it, none over another; others are told when pointed at."""
    taken: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda each: float(str(each["y"]))):
        name, px, py = str(mark["name"]), float(str(mark["x"])), float(str(mark["y"]))
        name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        width = CHARACTER * len(name)
        mark["label"] = None
        for start, anchor in ((px + 8, "start"), (px - 8 - width, "end")):
            inside = start > Frame.left - 50 and start + width < Frame.width
            if inside and not any(abs(py - ty) < LINE and start < te and ts < start + width for ts, te, ty in taken):
                mark["label"] = {"x": px + 8 if anchor == "start" else px - 8, "anchor": anchor, "text": name}
                taken.append((start, start + width, py))
                break
        taken.append((px - 6, px + 6, py))
    return marks


def _decades(low: float, high: float, x: Scale) -> Ticks:
    """Round amounts within the logarithms low..high: 1, 2, 5 times powers of ten, powers alone of many."""
    if high - low < 1:
        amounts = [amount for amount in nice_ticks(10**low, 10**high, 5) if amount > 0]
        return placed(amounts, lambda amount: x(math.log10(amount)))
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [(math.log10(m) + p, m * 10.0**p) for p in powers for m in steps]
    inside = [(at, value) for at, value in ticks if low <= at <= high]
    every = -(-len(inside) // 6) or 1
    return [(x(at), f"{value:g}" if value < 10_000 else f"{value / 1000:g}k") for at, value in inside[::every]]
