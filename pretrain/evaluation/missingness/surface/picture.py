"""A missingness surface as a picture: AUROC and points lost in every cell, and the presets with their intervals.

One colour runs from light (nothing is lost) to dark (much is): it reads in print and without seeing colours, and every
cell holds its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from cardialign.data_shards.errors import UsageError, disk_error
from cardialign.pretrain.evaluation.missingness.surface.result import EVIDENCE, Cell, Surface, SurfaceResult, points

FORMATS = (".png", ".svg", ".pdf")
_COLOURS, _INK, _GREY = "Blues", "#1a1a1a", "#8a8a8a"
_CELL, _MARGIN, _LINE = 0.92, 1.0, 0.34  # inches
_DARK = 0.18
"""Below this luminance white stands out more than black."""
_LEAST = 0.05
"""The scale reaches at least to so much AUROC lost: noise is not to look like a loss."""


def check_picture(path: Path) -> None:
    """Raises UsageError for a name that no picture has."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is no name of a picture", f"let it end in {', '.join(FORMATS)}")


def draw_surface(result: SurfaceResult, path: Path) -> Path:
    """Raises UsageError as `check_picture`, DataError when it cannot be written."""
    check_picture(path)
    drawn = [each for each in result.surfaces if len(each.cells) > 1]
    rows = max((len(each.leads) for each in drawn), default=0)
    widths = [len(each.time) * _CELL + _MARGIN for each in drawn]
    width = max(sum(widths) + 0.3, 7.0)
    top = 1.05
    surfaces, presets = rows * _CELL * 0.62 + 0.6 if drawn else 0.0, 0.0
    if result.presets:
        presets = len(result.presets) * _LINE + 0.75
    height = top + surfaces + presets
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    _head(figure, result, height)
    worst = max(cell.lost.value for each in drawn for cell in each.cells.values()) if drawn else 0.0
    scale = Normalize(0.0, max(worst, _LEAST))
    left = 0.0
    for each, wide in zip(drawn, widths, strict=True):
        inside = len(each.time) * _CELL
        tall = len(each.leads) * _CELL * 0.62
        box = (left + 0.85, height - top - 0.1 - tall, inside, tall)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        _draw(axes, each, scale)
        left += wide
    if result.presets:
        box = (2.6, 0.6, width - 4.6, len(result.presets) * _LINE)
        _presets(figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height)), result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=path.suffix[1:].lower(), metadata=_undated(path))
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def _undated(path: Path) -> dict[str, None]:
    """The same figures make the same file."""
    return {} if path.suffix.lower() == ".png" else {"Date" if path.suffix.lower() == ".svg" else "CreationDate": None}


def _head(figure: Figure, result: SurfaceResult, height: float) -> None:
    whole = result.whole.auroc
    said = f"{whole.value:.3f}" + (f" ({whole.low:.3f} to {whole.high:.3f})" if math.isfinite(whole.low) else "")
    lines = (
        (f"Missing leads and time: {result.measure}, {result.name}", 12, "bold", _INK),
        (
            f"{result.records} records of {result.patients} patients, encoders: {result.seeds}, draws: {result.draws}; "
            f"macro AUROC of whole records {said}",
            8.5,
            "normal",
            _INK,
        ),
        ("in the cells: macro AUROC, and the points that are lost", 8.5, "normal", _INK),
    )
    for k, (text, size, weight, colour) in enumerate(lines):
        at = 1 - (0.24 + 0.21 * k) / height
        figure.text(0.02, at, text, fontsize=size, fontweight=weight, color=colour, va="center")


def _draw(axes: Axes, surface: Surface, scale: Normalize) -> None:
    lost = np.array([[surface.cells[k, h].lost.value for h in surface.time] for k in surface.leads])
    image = axes.imshow(lost.clip(0), cmap=_COLOURS, norm=scale, aspect="auto")
    for row, number in enumerate(surface.leads):
        for column, share in enumerate(surface.time):
            cell = surface.cells[number, share]
            ink = "white" if _luminance(image.cmap(scale(max(cell.lost.value, 0.0)))) < _DARK else _INK
            axes.text(column, row, _written(cell), ha="center", va="center", fontsize=8.5, color=ink, linespacing=1.15)
    axes.set_xticks(range(len(surface.time)), [f"{100 * share:g} %" for share in surface.time], fontsize=8)
    axes.set_yticks(range(len(surface.leads)), [str(number) for number in surface.leads], fontsize=8)
    axes.set_xticks(np.arange(len(surface.time) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(surface.leads) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("time missing", fontsize=8.5)
    axes.set_ylabel("leads missing", fontsize=8.5)
    classes = f"{len(surface.codes)} class{'es' * (len(surface.codes) != 1)}"
    title = f"{surface.chosen}, {classes}" if surface.chosen != EVIDENCE else f"{surface.chosen} first, {classes}"
    axes.set_title(title, fontsize=9, color=_INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of a colour, as WCAG 2 has it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _written(cell: Cell) -> str:
    if cell.leads == 0 and cell.time == 0:
        return f"{cell.auroc.value:.3f}"
    return f"{cell.auroc.value:.3f}\n{-100 * cell.lost.value:+z.1f}"


def _presets(axes: Axes, result: SurfaceResult) -> None:
    places = [float(k) for k in range(len(result.presets))]
    for place, each in zip(places, result.presets, strict=True):
        low, high = (100 * (each.lost.value if math.isnan(end) else end) for end in (each.lost.low, each.lost.high))
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.6, solid_capstyle="butt")
        axes.plot([100 * each.lost.value], [place], "o", color=_INK, markersize=5)
        told = f"{each.auroc.value:.3f}   {points(each.lost)}"
        axes.text(1.01, place, told, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center", color=_INK)
    names = [each.name if each.name == ", ".join(each.leads) else f"{each.name}: {_short(each.leads)}"
             for each in result.presets]  # fmt: skip
    axes.set_yticks(places, names, fontsize=8.5)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "points of macro AUROC lost when only these leads are there, 95 % interval by patient", fontsize=8.5
    )
    axes.tick_params(length=0, labelsize=8.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _short(leads: tuple[str, ...]) -> str:
    return ", ".join(leads) if len(leads) < 5 else f"{leads[0]} to {leads[-1]}"
