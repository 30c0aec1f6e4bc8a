"""The panels of a map as pictures: points on nothing, for a page, or a whole sheet with legends, for paper.

A class has a colour and a mark of its own; the colours differ for all kinds of colour vision (Okabe and Ito 2008, two
of them darkened) and stand out from white and from black. Legend: n records.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cardialign.data_shards.errors import disk_error
from cardialign.pretrain.evaluation.atlas.chart import OTHER, SEVERAL, UNLABELLED, Atlas, Chart

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c78a00", "#3c9ad6")
MARKS = ("o", "s", "^", "D", "v", "P")
GREY = "#8a939c"
MARKED = "#d55e00"
AGES: Colormap = LinearSegmentedColormap.from_list("ages", ["#2a66c4", "#6a8fb8", "#9a9890", "#cc9a45", "#dc7a10"])
"""Blue of the young to orange of the old, which all kinds of colour vision tell apart, on light and on dark pages."""
CHILD = 15.0
"""With patients this young, the years of childhood have more of the scale."""
PANEL_INCHES, PANEL_DPI, SHEET_DPI = 3.6, 150, 200
_SHEET_WIDTH, _LEGEND_WIDTH, _MARGIN = 4.6, 3.5, 0.35


def class_panel(atlas: Atlas, chart: Chart) -> bytes:
    """PNG without a ground: every record by its class."""
    return _panel(chart, lambda axes: _by_class(axes, atlas, chart))


def one_class_panel(atlas: Atlas, chart: Chart, column: int) -> bytes:
    """PNG without a ground: the records that have one class, whatever else they have, before all others."""
    return _panel(chart, lambda axes: _one_class(axes, atlas, chart, column))


def age_panel(atlas: Atlas, chart: Chart) -> bytes:
    """PNG without a ground: every record by age."""
    return _panel(chart, lambda axes: _by_age(axes, atlas, chart))


def age_bar() -> bytes:
    """PNG of the colours of ages, from young to old."""
    figure = Figure(figsize=(3.0, 0.12), dpi=PANEL_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=AGES, aspect="auto")
    axes.set_axis_off()
    return _png(figure)


def age_ticks(atlas: Atlas) -> list[tuple[float, str]]:
    """Place from 0 to 1 on the bar of ages, and words, of its ticks; [] where no age is known."""
    norm = _norm(atlas)
    if norm is None:
        return []
    assert norm.vmax is not None
    years = [0, 2, 10, 30, 60, 90] if isinstance(norm, PowerNorm) else range(0, 111, 20)
    low = float(norm.vmin or 0.0)
    return [(float(norm(year)), f"{year}") for year in years if low <= year <= norm.vmax]


def write_sheet(atlas: Atlas, path: Path) -> Path:
    """The maps by class, if any, and by age with their legends and how they were made, as SVG, PNG or PDF by the name
    of `path`.

    Raises DataError when it cannot be written.
    """
    figure = sheet(atlas)
    meta: dict[str, Any] = {"Date": None} if path.suffix.lower() in (".svg", ".pdf") else {}
    if path.suffix.lower() == ".pdf":
        meta = {"CreationDate": None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": "cardialign", "svg.fonttype": "none"}):
            figure.savefig(path, dpi=SHEET_DPI, metadata=meta)
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def sheet(atlas: Atlas) -> Figure:
    """The same as a figure."""
    columns = len(atlas.charts)
    width = columns * _SHEET_WIDTH + _LEGEND_WIDTH
    drawn = (_by_class, _by_age) if atlas.label_set else (_by_age,)
    height = len(drawn) * _SHEET_WIDTH + 2 * _MARGIN + 0.25
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    side = _SHEET_WIDTH - _MARGIN
    for k, chart in enumerate(atlas.charts):
        for row, draw in enumerate(drawn):
            left, bottom = k * _SHEET_WIDTH + _MARGIN / 2, height - (row + 1) * (_SHEET_WIDTH + 0.1) - 0.05
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            _frame(axes, chart)
            draw(axes, atlas, chart)
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color("#c5ccd3")
            name = chart.name if len(chart.name) <= 48 else f"...{chart.name[-45:]}"
            axes.set_title(name, fontsize=10, loc="left", parse_math=False)
    left = (columns * _SHEET_WIDTH) / width
    if atlas.label_set:
        _class_legend(figure, atlas, left, (height - 0.55) / height)
    _age_legend(figure, atlas, left, width, height)
    _foot(figure, atlas, width, height)
    return figure


def _class_legend(figure: Figure, atlas: Atlas, left: float, top: float) -> None:
    legend = figure.legend(
        handles=_handles(atlas), loc="upper left", bbox_to_anchor=(left, top), fontsize=9, frameon=False,
        title=f"by class of {atlas.label_set}", alignment="left",
    )  # fmt: skip
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def class_legend(atlas: Atlas) -> list[dict[str, Any]]:
    """Entries of the legend in their order: words, records, and of a class its colour and mark."""
    counts = {
        int(value): int(number) for value, number in zip(*np.unique(atlas.colour, return_counts=True), strict=True)
    }
    entries: list[dict[str, Any]] = []
    for place, column in enumerate(atlas.shown):
        code, name = atlas.about.names[column]
        words = name if name == code else f"{code}  {name}"
        entries.append({"words": words, "records": counts.get(place, 0), "place": place})
    for value, words in ((SEVERAL, "several of these"), (OTHER, "none of these"), (UNLABELLED, "not labelled")):
        if counts.get(value):
            entries.append({"words": words, "records": counts[value], "place": value})
    return entries


def _handles(atlas: Atlas) -> list[Line2D]:
    out = []
    for entry in class_legend(atlas):
        words = entry["words"] if len(entry["words"]) <= 34 else f"{entry['words'][:33]}…"
        label, size = f"{words}  ({entry['records']:,})", 3.5 if entry["place"] == OTHER else 6.0
        out.append(Line2D([], [], label=label, linestyle="", markersize=size, **_style(entry["place"])))
    return out


def _style(place: int) -> dict[str, Any]:
    """The mark of one kind of records, as of `Axes.plot`."""
    if place >= 0:
        return {"marker": MARKS[place], "color": PALETTE[place], "markeredgewidth": 0}
    if place == SEVERAL:
        return {"marker": "o", "color": "none", "markeredgecolor": GREY, "markeredgewidth": 1.1}
    return {"marker": "o" if place == OTHER else "x", "color": GREY, "markeredgewidth": 0 if place == OTHER else 0.7}


def _panel(chart: Chart, draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(PANEL_INCHES, PANEL_INCHES), dpi=PANEL_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    _frame(axes, chart)
    draw(axes)
    axes.set_axis_off()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", transparent=True, metadata={"Software": None})
    return content.getvalue()


def _frame(axes: Axes, chart: Chart) -> None:
    """A square that holds every record, with one scale for both directions."""
    low, high = chart.places.min(axis=0), chart.places.max(axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.53 or 1.0
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)


def _size(atlas: Atlas) -> float:
    """Width of a mark in points: smaller the more there are."""
    return float(np.clip(90 / np.sqrt(len(atlas.colour)), 1.8, 6.0))


def _dots(axes: Axes, at: np.ndarray, size: float, style: dict[str, Any], order: int, alpha: float = 0.85) -> None:
    if len(at):
        axes.plot(*at.T, linestyle="", markersize=size, zorder=order, alpha=alpha, rasterized=True, **style)


def _by_class(axes: Axes, atlas: Atlas, chart: Chart) -> None:
    """Rare classes lie over frequent ones."""
    size = _size(atlas)
    for value, smaller in ((UNLABELLED, 0.8), (OTHER, 0.6)):
        _dots(axes, chart.places[atlas.colour == value], size * smaller, _style(value), 1, 0.5)
    _dots(axes, chart.places[atlas.colour == SEVERAL], size, _style(SEVERAL), 2)
    counts = [int((atlas.colour == place).sum()) for place in range(len(atlas.shown))]
    for order, place in enumerate(sorted(range(len(counts)), key=lambda each: -counts[each])):
        _dots(axes, chart.places[atlas.colour == place], size, _style(place), 3 + order)


def _one_class(axes: Axes, atlas: Atlas, chart: Chart, column: int) -> None:
    has = atlas.about.truth[:, column]
    _dots(axes, chart.places[~has], _size(atlas) * 1.4, {"marker": "o", "color": GREY, "markeredgewidth": 0}, 1, 0.35)
    _dots(axes, chart.places[has], _size(atlas) * 2.4, {"marker": "o", "color": MARKED, "markeredgewidth": 0}, 2)


def _norm(atlas: Atlas) -> Normalize | None:
    known = atlas.about.ages[np.isfinite(atlas.about.ages)]
    if not known.size:
        return None
    low, high = float(known.min()), max(float(known.max()), float(known.min()) + 1)
    if np.mean(known < CHILD) > 0.05:
        return PowerNorm(0.5, 0.0, high)
    return Normalize(low, high)


def _by_age(axes: Axes, atlas: Atlas, chart: Chart) -> None:
    ages, norm, size = atlas.about.ages, _norm(atlas), _size(atlas)
    known = np.isfinite(ages)
    _dots(axes, chart.places[~known], size * 0.8, _style(UNLABELLED), 1, 0.5)
    if norm is not None:
        order = np.random.default_rng(0).permutation(np.flatnonzero(known))  # no age lies over the others
        x, y = chart.places[order].T
        colour = AGES(norm(ages[order]))
        axes.scatter(x, y, c=colour, s=size**2, linewidths=0, alpha=0.85, zorder=2, rasterized=True)


def _age_legend(figure: Figure, atlas: Atlas, left: float, width: float, height: float) -> None:
    middle = (height - (_SHEET_WIDTH + 0.2 if atlas.label_set else 0.0) - 0.55) / height
    norm = _norm(atlas)
    unknown = int((~np.isfinite(atlas.about.ages)).sum())
    words = "age in years" if norm is not None else "no age is known"
    words += f"\nunknown of {unknown:,} records (x)" if unknown and norm is not None else ""
    figure.text(left + 0.1 / width, middle, words, fontsize=9, va="top", parse_math=False)
    if norm is None:
        return
    axes = figure.add_axes((left + 0.15 / width, middle - 2.9 / height, 0.16 / width, 2.4 / height))
    bar = figure.colorbar(ScalarMappable(norm, AGES), cax=axes)
    ticks = [float(word) for _, word in age_ticks(atlas)]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _foot(figure: Figure, atlas: Atlas, width: float, height: float) -> None:
    words = f"t-SNE, perplexity {atlas.perplexity:.3g}, {atlas.sample.words}. Near on paper is near in the embedding;"
    words += "\ndistances between groups, their sizes and the axes say nothing."
    figure.text(0.2 / width, 0.12 / height, words, fontsize=8, color="#4a545e", va="bottom", parse_math=False)
