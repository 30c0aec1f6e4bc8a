"""Small charts as inline SVG text, drawn for the HTML report: no library, no script, colours come from the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate, pairwise

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 38
INTERVAL_WIDTH, INTERVAL_HEIGHT = 300, 26
INTERVAL_PAD = 18


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick values (1, 2, 2.5 or 5 times a power of ten) that lie inside [low, high], about `count` of them."""
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


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Centred moving average over a window of `share` of the points, cut short at both ends; centred so that a falling curve does not lag."""
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
    reference: tuple[float, str] | None = None,
    extent: tuple[float, float] | None = None,
) -> str:
    """One curve over training steps. `smooth` draws the raw curve faintly under its moving average; `reference` = (value, label) a dashed line;
    `extent` the first and last step of the axis, when several charts share one."""
    points = [(float(s), float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    shown = [*ys, *([reference[0]] if reference else []), *([0.0] if from_zero else [])]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero and low >= 0 else low - margin), high + margin
    first, last = extent or (xs[0], xs[-1])
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    ticks = nice_ticks(low, high, 5)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, label, "end"))
    step_ticks = [t for t in nice_ticks(first, last, 6) if t == int(t)]
    for tick, label in zip(step_ticks, tick_labels(step_ticks), strict=True):
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, label))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "step", kind="axis-label"))
    if reference:
        at = y(reference[0])
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(WIDTH - RIGHT, at - 5, reference[1], "end", "tick"))

    def path(heights: Sequence[float], kind: str) -> str:
        if len(heights) == 1:
            return f'<circle class="{kind} dot" cx="{x(xs[0]):.1f}" cy="{y(heights[0]):.1f}" r="3"/>'
        return f'<polyline class="{kind}" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, heights, strict=True))}"/>'

    if smooth and len(ys) >= 20:
        parts += [path(ys, "raw"), path(smoothed(ys), "curve")]
    else:
        parts.append(path(ys, "curve"))
    parts.append("</svg>")
    caption = f"{escape(title)}{f' <span>{escape(unit)}</span>' if unit else ''}"
    return f'<figure class="panel"><figcaption>{caption}</figcaption>{"".join(parts)}</figure>'


class IntervalScale:
    """The common horizontal AUROC axis of all rows of the zero-shot table; draws its own header and one row at a time."""

    def __init__(self, values: Sequence[float]) -> None:
        finite = [v for v in values if math.isfinite(v)]
        self.low = max(0.0, min(0.4, math.floor(min(finite, default=0.4) * 10 - 1e-9) / 10))
        self.ticks = nice_ticks(self.low, 1.0, 5)
        self.x = _scale(self.low, 1.0, INTERVAL_PAD, INTERVAL_WIDTH - INTERVAL_PAD)

    def _svg(self, inner: str, label: str) -> str:
        return (
            f'<svg class="interval" viewBox="0 0 {INTERVAL_WIDTH} {INTERVAL_HEIGHT}" width="{INTERVAL_WIDTH}" height="{INTERVAL_HEIGHT}" '
            f'role="img" aria-label="{escape(label, quote=True)}">{inner}</svg>'
        )

    def header(self) -> str:
        return self._svg(
            "".join(
                _text(self.x(t), INTERVAL_HEIGHT - 8, label)
                for t, label in zip(self.ticks, tick_labels(self.ticks), strict=True)
            ),
            "AUROC axis",
        )

    def row(self, trained: tuple[float, float, float], untrained: tuple[float, float, float] | None) -> str:
        """(value, low, high) of both encoders; NaN bounds draw the dot alone."""
        lines = [(t, "chance" if abs(t - 0.5) < 1e-9 else "grid") for t in self.ticks]
        if all(kind == "grid" for _, kind in lines):
            lines.append((0.5, "chance"))
        parts = [
            f'<line class="{kind}" x1="{self.x(t):.1f}" x2="{self.x(t):.1f}" y1="0" y2="{INTERVAL_HEIGHT}"/>'
            for t, kind in lines
        ]
        middle = INTERVAL_HEIGHT / 2
        if untrained is not None:
            parts.append(self._mark(untrained, "untrained", middle + 3, 3.2))
        parts.append(self._mark(trained, "trained", middle - (3 if untrained is not None else 0), 4.2))
        return self._svg("".join(parts), f"AUROC {trained[0]:.3f}")

    def _mark(self, estimate: tuple[float, float, float], kind: str, y: float, radius: float) -> str:
        value, low, high = estimate
        if not math.isfinite(value):
            return ""
        bar = ""
        if math.isfinite(low) and math.isfinite(high):
            bar = f'<line class="{kind}" x1="{self.x(low):.1f}" x2="{self.x(high):.1f}" y1="{y}" y2="{y}"/>'
        return f'{bar}<circle class="{kind}" cx="{self.x(value):.1f}" cy="{y}" r="{radius}"/>'


def weight_bars(weights: Mapping[str, float]) -> str:
    """Horizontal bars on a 0..1 axis (wider when a weight exceeds 1), one per lead group, with its figure at the end."""
    top = max(1.0, *weights.values())
    label, row, length = 74, 24, 150
    width = label + length + 46
    parts = [
        f'<svg class="bars" viewBox="0 0 {width} {row * len(weights)}" width="{width}" role="img" aria-label="lead-group weights">'
    ]
    for k, (name, weight) in enumerate(weights.items()):
        y = k * row
        size = max(0.0, weight) / top * length
        parts.append(_text(label - 8, y + 16, name, "end", "bar-label"))
        parts.append(f'<rect class="track" x="{label}" y="{y + 6}" width="{length}" height="12" rx="2"/>')
        parts.append(f'<rect class="bar" x="{label}" y="{y + 6}" width="{size:.1f}" height="12" rx="2"/>')
        parts.append(_text(label + length + 8, y + 16, f"{weight:.2f}", "start", "bar-label"))
    return "".join(parts) + "</svg>"
