"""Histograms and frequency bars as inline SVG text, in the style of `report_charts`: no library, no script, colours from the page's CSS classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from cardialign.cluster.pages.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    _scale,
    _text,
    nice_ticks,
    tick_labels,
)

GAP = 1.5
ROW, FIGURE = 22, 96
LONGEST_LABEL = 38
CHARACTER = 7.3
"""Width of a bar's label per character, rather too wide than too narrow: the reader's font is not known."""


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, unit: str = "", axis: str = "") -> str:
    """Bars over n + 1 ascending `edges` with n `counts`; "" without counts. Each bar tells its range and count when pointed at."""
    if not counts:
        return ""
    x = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = _scale(0.0, max(max(counts), 1) * 1.06, HEIGHT - BOTTOM, TOP)
    parts = _frame(title, y, max(counts), axis)
    ticks = nice_ticks(edges[0], edges[-1], 7)
    parts += [
        _text(x(tick), HEIGHT - BOTTOM + 18, label) for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    ]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        parts.append(_column(x(low), x(high), y, count, f"{low:g} to {high:g}: {count:,}"))
    return _panel(title, unit, parts)


def column_chart(counts: Mapping[str, int], *, title: str, unit: str = "", axis: str = "") -> str:
    """One column per name, in the order given; for few, short names. "" without any."""
    if not counts:
        return ""
    x = _scale(0, len(counts), LEFT, WIDTH - RIGHT)
    y = _scale(0.0, max(max(counts.values()), 1) * 1.06, HEIGHT - BOTTOM, TOP)
    parts = _frame(title, y, max(counts.values()), axis)
    every = -(-len(counts) * max(map(len, counts)) // 52)  # labels stay apart: about 52 characters fit under the axis
    for place, (name, count) in enumerate(counts.items()):
        middle = (x(place) + x(place + 1)) / 2
        half = min(0.4 * (x(1) - x(0)), 26.0)
        parts.append(_column(middle - half, middle + half, y, count, f"{name}: {count:,}"))
        if place % every == 0:
            parts.append(_text(middle, HEIGHT - BOTTOM + 18, name))
    return _panel(title, unit, parts)


def frequency_bars(counts: Mapping[str, int], total: int, *, title: str, unit: str = "") -> str:
    """Horizontal bars, one per name, with count and share of `total`; long names are cut and whole when pointed at. "" without any."""
    if not counts:
        return ""
    top = max(max(counts.values()), 1)
    label = max(
        84.0, 14 + CHARACTER * min(LONGEST_LABEL, max(map(len, counts)))
    )  # short labels are codes in wide capitals
    length = WIDTH - label - FIGURE
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {ROW * len(counts) + 4}" role="img" aria-label="{escape(title, quote=True)}">'
    ]
    for place, (name, count) in enumerate(counts.items()):
        y = place * ROW
        shown = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1].rstrip() + "…"
        share = f"{count:,}  ({100 * count / total:.{0 if count >= 0.1 * total else 1}f} %)" if total else f"{count:,}"
        parts.append(f"<g><title>{escape(name)}: {count:,}</title>")
        parts.append(_text(label - 8, y + 16, shown, "end", "bar-label"))
        parts.append(
            f'<rect class="bar" x="{label:.1f}" y="{y + 6}" width="{count / top * length:.1f}" height="12" rx="1.5"/>'
        )
        parts.append(_text(label + count / top * length + 7, y + 16, share, "start"))
        parts.append("</g>")
    return _panel(title, unit, parts)


def _frame(title: str, y, highest: int, axis: str) -> list[str]:
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    ticks = [tick for tick in nice_ticks(0, max(highest, 1), 5) if tick == int(tick)]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, label, "end"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    if axis:
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, axis, kind="axis-label"))
    return parts


def _column(left: float, right: float, y, count: int, told: str) -> str:
    width = max(right - left - GAP, 0.8)
    height = y(0) - y(count)
    return f'<rect class="bar" x="{left + GAP / 2:.1f}" y="{y(count):.1f}" width="{width:.1f}" height="{height:.1f}"><title>{escape(told)}</title></rect>'


def _panel(title: str, unit: str, parts: list[str]) -> str:
    caption = f"{escape(title)}{f' <span>{escape(unit)}</span>' if unit else ''}"
    return f'<figure class="panel"><figcaption>{caption}</figcaption>{"".join(parts)}</svg></figure>'
