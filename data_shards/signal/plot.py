"""A 12-lead ECG as on clinical paper: 25 mm/s, 10 mm/mV, 1 mm and 5 mm grid, 3 x 4 leads of 2.5 s over a rhythm strip
of lead II.

Everything is laid out in millimetres of paper, so a print at 100 % can be measured with a ruler.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cardialign.data_shards.errors import UsageError, disk_error
from cardialign.data_shards.given_numbers import positive_number
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.signal.measurements import measure, words

MM_PER_SECOND = 25.0
MM_PER_MILLIVOLT = 10.0
LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM_LEAD = "II"
SECONDS = 10.0
COLUMN_SECONDS = SECONDS / 4

_LEFT, _RIGHT, _FOOT = 15.0, 5.0, 7.0  # mm; the calibration pulse stands in the left margin
_HEAD_LINE = 4.6
_FINEST = 1200
FORMATS = (".png", ".svg", ".pdf")
"""Endings of pictures that `draw_ecg` writes."""
_WIDTH = _LEFT + SECONDS * MM_PER_SECOND + _RIGHT
_ROW_REACH = (10.0, 45.0)  # mm above and below a row's base line: at least, at most
_NAME = 4.5  # mm over a row's peaks for the lead names
_TEXT_COLUMNS = ((5.0, 42), (84.0, 62), (196.0, 40))  # mm from the left, characters
_PAPER, _FINE, _BOLD, _INK, _GREY = "#fff8f6", "#f7d4cd", "#eba69b", "#1a1a1a", "#9a9a9a"
_MARK = (0.16, 0.42, 0.72, 0.28)
_DARKEST = 0.75  # of the ground of a group that is all that counts


@dataclass(frozen=True)
class _Strip:
    """One piece of a lead: where it starts on paper (mm) and in time (s), and how long it is (s)."""

    lead: str
    left: float
    start: float
    seconds: float


@dataclass(frozen=True)
class LeadWeight:
    """What a lead counts for: the name of its group, and the weight 0..1 of that group."""

    group: str
    weight: float


def draw_ecg(
    record: EcgRecord,
    path: str | Path | None = None,
    *,
    dpi: int = 130,
    marked: np.ndarray | None = None,
    weights: Mapping[str, LeadWeight] | None = None,
) -> Path | Figure:
    """Draw the first 10 s of `record`; write it to `path` as its ending says (`FORMATS`; none: PNG) and return the
    path, or return the Figure when `path` is None.

    Each lead is drawn about its own median. Masked leads are grey and say why; the head holds patient, rate, intervals
    and axes as `measurements` finds them, report statements, labels and quality flags. dpi: up to 1200, which is finer
    than printers are. marked bool (12, T): what stands on a coloured ground. weights: of leads by name; the ground of
    each of the twelve is the darker the more its group weighs, and its name says how much.

    Raises UsageError for another dpi and another ending, DataError when `path` cannot be written.
    """
    if positive_number("dpi", dpi) > _FINEST:
        raise UsageError(f"dpi is {dpi:g}", f"give a number up to {_FINEST}")
    ending = _ending(path)
    duration = record.valid_samples / record.sampling_rate
    # a record shorter than 10 s shows its last piece again rather than empty columns
    starts = [min(k * COLUMN_SECONDS, max(duration - COLUMN_SECONDS, 0.0)) for k in range(4)]
    rows = [
        [_Strip(lead, k * COLUMN_SECONDS * MM_PER_SECOND, starts[k], COLUMN_SECONDS) for k, lead in enumerate(row)]
        for row in LAYOUT
    ]
    rows.append([_Strip(RHYTHM_LEAD, 0.0, 0.0, SECONDS)])
    millivolts = _centred(record)
    reaches = [_reach(record, millivolts, row) for row in rows]
    apart = max(down + up for (_, down), (up, _) in pairwise(reaches))  # rows at one distance, as on paper
    height = reaches[0][0] + apart * (len(rows) - 1) + reaches[-1][1]
    head = _head_blocks(record)
    head_height = 4.0 + _HEAD_LINE * max(len(block) for block in head)
    total = head_height + height + _FOOT

    figure = Figure(figsize=(_WIDTH / 25.4, total / 25.4), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, _FOOT / total, 1.0, height / total))
    _draw_paper(axes, height)
    base = height - reaches[0][0]
    for row, (up, down) in zip(rows, reaches, strict=True):
        _draw_calibration(axes, base)
        for strip in row:
            _draw_ground(axes, record, strip, (base - down, base + up), marked, weights)
            _draw_strip(axes, record, millivolts, strip, base)
            _write_lead_name(axes, record, strip, base + up - 2.4, _weight_of(strip, weights))
        for strip in row[1:]:
            axes.plot([_LEFT + strip.left] * 2, [base - 2, base + 2], color=_INK, linewidth=0.8)
        base -= apart
    _write_head(figure, head, total)
    _write_foot(figure, record, total, bool(weights))
    return figure if path is None else _written(figure, Path(path), ending, record.key)


def _written(figure: Figure, path: Path, ending: str, salt: str) -> Path:
    """Equal pictures are equal files: without the time of writing, and with names inside that follow from the salt."""
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
    try:
        with rc_context({"svg.hashsalt": salt}):
            figure.savefig(path, dpi=figure.dpi, format=ending[1:], metadata=undated)
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def _ending(path: str | Path | None) -> str:
    ending = Path(path or "").suffix.lower() or FORMATS[0]
    if ending not in FORMATS:
        raise UsageError(f"{Path(path or '').name} ends in {ending}", f"name it {', '.join(FORMATS[:-1])} or .pdf")
    return ending


def _centred(record: EcgRecord) -> np.ndarray:
    """mV (12, valid samples), each lead about its median."""
    signal = record.millivolts()[:, : record.valid_samples]
    return signal - np.median(signal, axis=1, keepdims=True) if signal.shape[1] else signal


def _piece(record: EcgRecord, millivolts: np.ndarray, strip: _Strip) -> np.ndarray:
    first = round(strip.start * record.sampling_rate)
    return millivolts[STANDARD_LEADS.index(strip.lead), first : first + round(strip.seconds * record.sampling_rate)]


def _reach(record: EcgRecord, millivolts: np.ndarray, row: list[_Strip]) -> tuple[float, float]:
    """mm that a row needs above and below its base line, in whole 5 mm squares so that base lines stay on the grid."""
    pieces = [_piece(record, millivolts, strip) for strip in row if record.lead_mask[STANDARD_LEADS.index(strip.lead)]]
    up = max((float(piece.max()) for piece in pieces if piece.size), default=0.0) * MM_PER_MILLIVOLT
    down = max((-float(piece.min()) for piece in pieces if piece.size), default=0.0) * MM_PER_MILLIVOLT
    return _whole_squares(max(up, MM_PER_MILLIVOLT) + _NAME), _whole_squares(down + 1.5)


def _whole_squares(need: float) -> float:
    return float(np.clip(np.ceil(need / 5) * 5, *_ROW_REACH))


def _draw_paper(axes: Axes, height: float) -> None:
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(0, height)
    axes.set_facecolor(_PAPER)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_BOLD)
    for spacing, color, width in ((1, _FINE, 0.35), (5, _BOLD, 0.6)):
        across = [[(0, y), (_WIDTH, y)] for y in np.arange(0, height + 0.1, spacing) if spacing == 5 or y % 5]
        upright = [[(x, 0), (x, height)] for x in np.arange(0, _WIDTH + 0.1, spacing) if spacing == 5 or x % 5]
        axes.add_collection(
            LineCollection([*across, *upright], colors=color, linewidths=width, zorder=spacing / 10), autolim=False
        )


def _draw_calibration(axes: Axes, base: float) -> None:
    """The 1 mV pulse of 0.2 s."""
    x = _LEFT - 10 + np.array([0, 2, 2, 7, 7, 9])
    axes.plot(x, base + np.array([0, 0, MM_PER_MILLIVOLT, MM_PER_MILLIVOLT, 0, 0]), color=_INK, linewidth=0.9)


def _draw_strip(axes: Axes, record: EcgRecord, millivolts: np.ndarray, strip: _Strip, base: float) -> None:
    left = _LEFT + strip.left
    masked = not record.lead_mask[STANDARD_LEADS.index(strip.lead)]
    piece = _piece(record, millivolts, strip)
    color = _GREY if masked else _INK
    if strip.lead in record.quality.get("missing-lead", ()):
        axes.plot(
            [left + 1, left + strip.seconds * MM_PER_SECOND - 1],
            [base, base],
            color=_GREY,
            linewidth=0.9,
            linestyle=(0, (4, 3)),
        )
    else:
        x = left + np.arange(piece.size) / record.sampling_rate * MM_PER_SECOND
        axes.plot(x, base + piece * MM_PER_MILLIVOLT, color=color, linewidth=0.9, solid_joinstyle="round", zorder=3)


def _mark_strip(axes: Axes, record: EcgRecord, marked: np.ndarray, strip: _Strip, bottom: float, top: float) -> None:
    """The ground of each marked stretch of a strip."""
    piece = _piece(record, marked, strip).astype(np.int8)
    edges = np.diff(piece, prepend=0, append=0)
    mm = MM_PER_SECOND / record.sampling_rate
    for first, last in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
        left = _LEFT + strip.left + first * mm
        box = Rectangle((left, bottom + 0.5), (last - first) * mm, top - bottom - 1, facecolor=_MARK, edgecolor="none")
        axes.add_patch(box).set_zorder(2)


Weights = Mapping[str, LeadWeight] | None


def _weight_of(strip: _Strip, weights: Weights) -> LeadWeight | None:
    """None on the rhythm strip, whose lead has its weight further up."""
    return weights.get(strip.lead) if weights and strip.seconds < SECONDS else None


def _draw_ground(
    axes: Axes,
    record: EcgRecord,
    strip: _Strip,
    ends: tuple[float, float],
    marked: np.ndarray | None,
    weights: Weights,
) -> None:
    """What stands behind a strip, between these ends in mm."""
    if marked is not None:
        _mark_strip(axes, record, marked, strip, *ends)
    if (weight := _weight_of(strip, weights)) is not None:
        _weigh_strip(axes, weight, strip, *ends)


def _weigh_strip(axes: Axes, weight: LeadWeight, strip: _Strip, bottom: float, top: float) -> None:
    """The ground of a whole strip, as dark as its group weighs."""
    ground = (*_MARK[:3], float(np.clip(_DARKEST * weight.weight, 0, _DARKEST)))
    left, width = _LEFT + strip.left, strip.seconds * MM_PER_SECOND
    box = Rectangle((left + 0.3, bottom + 0.5), width - 0.6, top - bottom - 1, facecolor=ground, edgecolor="none")
    axes.add_patch(box).set_zorder(1.5)


def _write_lead_name(axes: Axes, record: EcgRecord, strip: _Strip, y: float, weight: LeadWeight | None) -> None:
    masked = not record.lead_mask[STANDARD_LEADS.index(strip.lead)]
    name = f"{strip.lead}  ({_why_masked(record, strip.lead)})" if masked else strip.lead
    if weight is not None:
        name += f"   {weight.group} {weight.weight:.2f}"
    color = _GREY if masked else _INK
    axes.text(
        _LEFT + strip.left + 1.2,
        y,
        name,
        fontsize=9,
        fontweight="bold",
        color=color,
        va="center",
        parse_math=False,
        zorder=4,
    )


def _why_masked(record: EcgRecord, lead: str) -> str:
    for flag, told in (("missing-lead", "not recorded"), ("non-finite", "no values"), ("flat", "flat")):
        if lead in record.quality.get(flag, ()):
            return told
    return "masked"


def _head_blocks(record: EcgRecord) -> list[list[tuple[str, bool]]]:
    """Three columns of (line, bold): the recording, the report, labels and quality."""
    recording = [(record.key, True), (f"{_age(record.age_years)}, {record.sex or 'sex unknown'}", False)]
    recording += [
        (text, False) for text in (record.acquired and record.acquired.replace("T", " "), record.source) if text
    ]
    if record.patient:
        recording.append((f"patient {record.patient}, fold {record.fold}", False))
    measured = [(line, False) for each in words(measure(record)) for line in _wrapped(each, 0)]
    recording += [("Measured by software", True), *measured] if measured else []
    report = [
        ("Report", True),
        *((line, False) for statement in record.statements or ("none",) for line in _wrapped(statement, 1)),
    ]
    remarks = [("Quality", True)]
    remarks += [
        (line, False) for flag, leads in record.quality.items() for line in _wrapped(f"{flag}: {', '.join(leads)}", 2)
    ] or [("no remark", False)]
    if record.labels:
        remarks.append(("Labels", True))
        remarks += [
            (line, False)
            for name, codes in record.labels.items()
            for line in _wrapped(f"{name}: {', '.join(codes)}", 2)
        ]
    return [_shortened(block) for block in (recording, report, remarks)]


def _age(years: float | None) -> str:
    """In the unit a clinician would use: days in newborns, months in infants."""
    if years is None:
        return "age unknown"
    if years < 0.25:
        return f"{years * 365.25:.0f} days"
    return f"{years * 12:.0f} months" if years < 2 else f"{years:.3g} years"


def _wrapped(text: str, column: int) -> list[str]:
    return textwrap.wrap(text, _TEXT_COLUMNS[column][1], subsequent_indent="   ") or [""]


def _shortened(block: list[tuple[str, bool]], most: int = 12) -> list[tuple[str, bool]]:
    return block if len(block) <= most else [*block[: most - 1], (f"... {len(block) - most + 1} more lines", False)]


def _write_head(figure: Figure, blocks: list[list[tuple[str, bool]]], total: float) -> None:
    for (left, _), block in zip(_TEXT_COLUMNS, blocks, strict=True):
        for k, (line, bold) in enumerate(block):
            y = 1 - (4.5 + k * _HEAD_LINE) / total
            weight = "bold" if bold else "normal"
            figure.text(
                left / _WIDTH, y, line, fontsize=9, fontweight=weight, color=_INK, va="center", parse_math=False
            )


def _write_foot(figure: Figure, record: EcgRecord, total: float, weighed: bool) -> None:
    rate = record.extra.get("original_sampling_rate", record.sampling_rate)
    told = [f"{MM_PER_SECOND:g} mm/s", f"{MM_PER_MILLIVOLT:g} mm/mV", f"{record.sampling_rate:g} Hz"]
    if rate != record.sampling_rate:
        told.append(f"recorded at {rate:g} Hz")
    told += [f"{record.valid_samples / record.sampling_rate:.4g} s of signal", "no filter added", "not for diagnosis"]
    lines = ["     ".join(told)]
    if weighed:  # a line of its own: behind the others it would leave the paper
        lines.append("ground: weight of the lead group in the embedding; where an encoder looked, not why")
    for k, line in enumerate(lines):
        y = (1 - (k + 0.5) / len(lines)) * _FOOT / total
        figure.text(_LEFT / _WIDTH, y, line, fontsize=8, color=_INK, va="center", parse_math=False)
