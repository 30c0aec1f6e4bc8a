"""Several 12-lead ECGs in one picture, in rows, each on its own paper with a few lines of words below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cardialign.data_shards.errors import disk_error
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal.plot import draw_ecg

_INK = "#1a1a1a"
_LINE, _MARGIN = 5.4, 5.0  # mm: from line to line, and around every panel
_CHARACTERS = 118  # of a line of words, on the 270 mm of a paper


class Panel(NamedTuple):
    """A record to draw, or None for words alone; a title and lines, which stand below the drawing."""

    record: EcgRecord | None
    title: str
    lines: Sequence[str]


def draw_side_by_side(rows: Sequence[Sequence[Panel]], path: str | Path, *, dpi: int = 100) -> Path:
    """Write a PNG of the panels, row below row, all at one scale (`draw_ecg`), and return its path.

    Raises DataError when `path` cannot be written.
    """
    papers = [[_paper(panel, dpi) for panel in row] for row in rows]
    margin, line = (round(mm / 25.4 * dpi) for mm in (_MARGIN, _LINE))
    width = max(paper.shape[1] for row in papers for paper in row)
    words = [[_wrapped(panel) for panel in row] for row in rows]
    heights = [
        max(paper.shape[0] + line * (len(lines) + 1) for paper, lines in zip(*each, strict=True)) + margin
        for each in zip(papers, words, strict=True)
    ]
    across = max(len(row) for row in rows) * (width + margin) + margin
    down = sum(heights) + margin
    canvas, texts = np.full((down, across, 3), 255, dtype=np.uint8), []
    top = margin
    for row, lines_of, height in zip(papers, words, heights, strict=True):
        for at, (paper, lines) in enumerate(zip(row, lines_of, strict=True)):
            left = margin + at * (width + margin)
            canvas[top : top + paper.shape[0], left : left + paper.shape[1]] = paper
            texts += [(left, top + paper.shape[0] + (k + 1) * line, *each) for k, each in enumerate(lines)]
        top += height
    figure = Figure(figsize=(across / dpi, down / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    figure.figimage(canvas)
    for x, y, text, weight in texts:
        figure.text(
            x / across, 1 - y / down, text, fontsize=10, fontweight=weight, color=_INK, va="center", parse_math=False
        )
    try:
        figure.savefig(path, dpi=dpi, format="png")
    except OSError as error:
        raise disk_error(error, Path(path)) from error
    return Path(path)


def _paper(panel: Panel, dpi: int) -> np.ndarray:
    """uint8 (height, width, 3); nothing high for words alone."""
    if panel.record is None:
        return np.zeros((0, 1, 3), dtype=np.uint8)
    figure = draw_ecg(panel.record, dpi=dpi)
    assert isinstance(figure, Figure) and isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def _wrapped(panel: Panel) -> list[tuple[str, str]]:
    """(line, weight of its letters): the title, then the words."""
    lines = [part for line in panel.lines for part in textwrap.wrap(line, _CHARACTERS, subsequent_indent="   ")]
    return [(panel.title, "bold"), *((line, "normal") for line in lines)]
