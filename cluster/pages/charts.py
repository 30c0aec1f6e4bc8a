"""Small charts as inline SVG for our pages: no library, no script, colours come from `page.css`.

Here a chart is places and lengths in SVG units; `templates/charts.html` draws them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from cardialign.cluster.pages.page import draw

INTERVAL_WIDTH, INTERVAL_HEIGHT = 300, 26
INTERVAL_PAD = 18
COLUMN_GAP = 1.5
ROW, LINE, FIGURE = 22, 16, 96
"""Height of a frequency bar's row, of each further line of its label, and what its figure takes at the end."""
LONGEST_LABEL, LONGEST_ABOVE, MOST_BESIDE, MOST_LINES = 38, 60, 2, 12
"""Characters of a line beside its bar and above it; lines that fit beside one, and that any label has."""
CHARACTER = 7.3
"""Width of a bar's label per character, rather too wide than too narrow: the reader's font is not known."""
Ticks = list[tuple[float, str]]
Scale = Callable[[float], float]
Estimate = tuple[float, float, float]
"""Value, low and high end of its interval."""


@dataclass(frozen=True)
class Frame:
    """Caption and axes of a chart: `across` and `up` are (place, label) of the ticks, `axis` is the word below."""

    width: ClassVar[int] = 460
    height: ClassVar[int] = 210
    left: ClassVar[int] = 58
    right: ClassVar[int] = 446
    top: ClassVar[int] = 12
    bottom: ClassVar[int] = 172

    title: str
    unit: str
    across: Ticks
    up: Ticks
    axis: str


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick values inside [low, high], about `count`: 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """One text per tick, all in one notation, with just enough digits to tell neighbours apart."""
    gap = min((abs(b - a) for a, b in pairwise(ticks)), default=abs(ticks[0]) if ticks else 0.0)
    top = max((abs(t) for t in ticks), default=0.0)
    if top >= 10_000:
        return ["0" if t == 0 else f"{t / 1000:g}k" for t in ticks]
    if 0 < top < 0.01 and gap < 0.001:
        return ["0" if abs(t) < gap / 1e6 else _scientific(t) for t in ticks]
    digits = max(0, math.ceil(-math.log10(gap) - 1e-9)) if gap > 0 else 3
    digits += any(abs(round(t, digits) - t) > gap / 100 for t in ticks)
    return ["0" if abs(t) < gap / 1e6 else f"{t:.{digits}f}" for t in ticks]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def scale_of(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def placed(ticks: Sequence[float], scale: Scale) -> Ticks:
    return [(scale(tick), label) for tick, label in zip(ticks, tick_labels(ticks), strict=True)]


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Moving average over a window of `share` of the points, cut short at both ends.

    The window is centred, so that a falling curve does not lag.
    """
    half = max(1, round(share * len(values) / 2))
    sums = list(accumulate(values, initial=0.0))
    spans = [(max(0, k - half), min(len(values), k + half + 1)) for k in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in spans]


def line_chart(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    unit: str = "",
    smooth: bool = False,
    from_zero: bool = False,
    extent: tuple[float, float] | None = None,
) -> str:
    """One curve over training steps; "" without a finite value.

    smooth draws the raw curve faintly under its moving average; extent is the first and last step of the axis, when
    several charts share one.
    """
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    shown = [*ys, *([0.0] if from_zero else [])]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero and low >= 0 else low - margin), high + margin
    first, last = extent or (xs[0], xs[-1])
    x = scale_of(first, last, Frame.left, Frame.right)
    y = scale_of(low, high, Frame.bottom, Frame.top)
    across = placed([tick for tick in nice_ticks(first, last, 6) if tick == int(tick)], x)
    frame = Frame(title, unit, across, placed(nice_ticks(low, high, 5), y), "step")

    def path(heights: Sequence[float]) -> list[tuple[float, float]]:
        return [(x(step), y(height)) for step, height in zip(xs, heights, strict=True)]

    smooth = smooth and len(ys) >= 20
    curves = [("raw", path(ys)), ("curve", path(smoothed(ys)))] if smooth else [("curve", path(ys))]
    return draw("lines", frame=frame, curves=curves)


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, unit: str = "", axis: str = "") -> str:
    """Bars over n + 1 ascending `edges` with n `counts`; "" without counts.

    Each bar tells its range and count when pointed at.
    """
    if not counts:
        return ""
    x = scale_of(edges[0], edges[-1], Frame.left, Frame.right)
    y, up = _counting(max(counts))
    bars = [
        _column(x(low), x(high), y, count, f"{low:g} to {high:g}: {count:,}")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    across = placed(nice_ticks(edges[0], edges[-1], 7), x)
    return draw("columns", frame=Frame(title, unit, across, up, axis), bars=bars)


def column_chart(counts: Mapping[str, int], *, title: str, unit: str = "", axis: str = "") -> str:
    """One column per name, in the order given; for few, short names. "" without any."""
    if not counts:
        return ""
    x = scale_of(0, len(counts), Frame.left, Frame.right)
    y, up = _counting(max(counts.values()))
    every = -(-len(counts) * max(map(len, counts)) // 52)  # labels stay apart: about 52 characters fit under the axis
    half = min(0.4 * (x(1) - x(0)), 26.0)
    middles = [(x(place) + x(place + 1)) / 2 for place in range(len(counts))]
    bars = [
        _column(middle - half, middle + half, y, count, f"{name}: {count:,}")
        for middle, (name, count) in zip(middles, counts.items(), strict=True)
    ]
    across = list(zip(middles, counts, strict=True))[::every]
    return draw("columns", frame=Frame(title, unit, across, up, axis), bars=bars)


def _counting(highest: int) -> tuple[Scale, Ticks]:
    """The scale upwards of a chart of counts, and its ticks: whole numbers only."""
    y = scale_of(0.0, max(highest, 1) * 1.06, Frame.bottom, Frame.top)
    return y, placed([tick for tick in nice_ticks(0, max(highest, 1), 5) if tick == int(tick)], y)


def _column(left: float, right: float, y: Scale, count: int, told: str) -> dict[str, Any]:
    width, height = max(right - left - COLUMN_GAP, 0.8), y(0) - y(count)
    return {"x": left + COLUMN_GAP / 2, "y": y(count), "width": width, "height": height, "told": told}


def frequency_bars(counts: Mapping[str, int], total: int, *, title: str, unit: str = "") -> str:
    """Horizontal bars, one per name, with count and share of `total`; "" without any.

    Long names take several lines; where one would take more than two beside its bar, all stand above theirs.
    """
    if not counts:
        return ""
    top = max(max(counts.values()), 1)
    labels = [_lines(name) for name in counts]
    beside = all(len(lines) <= MOST_BESIDE for lines in labels)
    if not beside:
        labels = [_lines(name, LONGEST_ABOVE) for name in counts]
    left = _label_room(labels, 84.0) if beside else 4.0  # short labels are codes in wide capitals
    bars: list[dict[str, Any]] = []
    y = 0.0
    for lines, (name, count) in zip(labels, counts.items(), strict=True):
        digits = 0 if count >= 0.1 * total else 1
        share = f"{count:,}  ({100 * count / total:.{digits}f} %)" if total else f"{count:,}"
        width = count / top * (Frame.width - left - FIGURE)
        bars.append({"y": y, "lines": lines, "told": f"{name}: {count:,}", "width": width, "share": share})
        y += ROW + LINE * (len(lines) - beside)
    shape = {"width": Frame.width, "height": y + 4, "left": left, "line": LINE, "beside": beside}
    return draw("frequencies", title=title, unit=unit, bars=bars, **shape)


def share_bars(shares: Mapping[str, float], *, title: str, unit: str = "") -> str:
    """Horizontal bars of shares of one whole, longest for 1; "" without any."""
    if not shares:
        return ""
    left = _label_room([[_label(name)] for name in shares], 84.0)
    room = Frame.width - left - FIGURE
    bars = [
        {"y": place * ROW, "lines": [_label(name)], "told": f"{name}: {100 * share:.1f} %", "width": share * room,
         "share": f"{100 * share:.0f} %"}
        for place, (name, share) in enumerate(shares.items())
    ]  # fmt: skip
    shape = {"width": Frame.width, "height": ROW * len(bars) + 4, "left": left, "line": LINE, "beside": True}
    return draw("frequencies", title=title, unit=unit, bars=bars, **shape)


def _label(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1].rstrip() + "…"


def _lines(name: str, longest: int = LONGEST_LABEL) -> list[str]:
    """A label as the lines that it takes; all of it, but for what would fill a page. In capitals a line holds less."""
    longest = max(1, int(longest * len(name) / max(_size(name), 1)))
    return textwrap.wrap(name, longest, max_lines=MOST_LINES, placeholder=" …") or [""]


def _label_room(labels: Iterable[Sequence[str]], least: float) -> float:
    """Width that the labels of bars need at the left, `least` at the least."""
    return max(least, 14 + CHARACTER * max(_size(line) for lines in labels for line in lines))


def _size(line: str) -> float:
    """Width in characters: a capital is a quarter wider."""
    return len(line) + 0.25 * sum(letter.isupper() for letter in line)


class IntervalScale:
    """The common horizontal AUROC axis of all rows of the zero-shot table; draws its own header, one row at a time."""

    def __init__(self, values: Sequence[float]) -> None:
        finite = [v for v in values if math.isfinite(v)]
        self.low = max(0.0, min(0.4, math.floor(min(finite, default=0.4) * 10 - 1e-9) / 10))
        self.ticks = nice_ticks(self.low, 1.0, 5)
        self.x = scale_of(self.low, 1.0, INTERVAL_PAD, INTERVAL_WIDTH - INTERVAL_PAD)

    def header(self) -> str:
        ticks = placed(self.ticks, self.x)
        return draw("interval_header", width=INTERVAL_WIDTH, height=INTERVAL_HEIGHT, ticks=ticks)

    def row(self, trained: Estimate, untrained: Estimate | None) -> str:
        """The interval of both encoders; NaN bounds draw the dot alone."""
        grid = [(self.x(tick), "chance" if abs(tick - 0.5) < 1e-9 else "grid") for tick in self.ticks]
        if all(kind == "grid" for _, kind in grid):
            grid.append((self.x(0.5), "chance"))
        middle = INTERVAL_HEIGHT / 2
        marks = [self._mark(untrained, "untrained", middle + 3, 3.2)] if untrained is not None else []
        marks.append(self._mark(trained, "trained", middle - (3 if untrained is not None else 0), 4.2))
        return draw(
            "interval_row",
            width=INTERVAL_WIDTH,
            height=INTERVAL_HEIGHT,
            label=f"AUROC {trained[0]:.3f}",
            grid=grid,
            marks=[mark for mark in marks if mark is not None],
        )

    def _mark(self, estimate: Estimate, kind: str, y: float, radius: float) -> dict[str, Any] | None:
        value, low, high = estimate
        if not math.isfinite(value):
            return None
        ends = (self.x(low), self.x(high)) if math.isfinite(low) and math.isfinite(high) else None
        return {"kind": kind, "x": self.x(value), "y": y, "radius": radius, "ends": ends}


def weight_bars(weights: Mapping[str, float]) -> str:
    """Horizontal bars on a 0..1 axis (wider when a weight exceeds 1), one per lead group with its figure."""
    top = max(1.0, *weights.values())
    left, row, length = _label_room([[_label(name)] for name in weights], 74.0), 24, 150
    bars = [
        {"y": place * row, "name": _label(name), "weight": weight, "width": max(0.0, weight) / top * length}
        for place, (name, weight) in enumerate(weights.items())
    ]
    return draw("weights", width=left + length + 46, height=row * len(bars), left=left, length=length, bars=bars)
