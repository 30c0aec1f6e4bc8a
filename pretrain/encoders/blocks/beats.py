"""Beats as an electrocardiograph sees them: where they are, how regularly they come, what they look like on average.

A patch token sees a part of one beat. Whether beats come regularly is a statement about the whole record, and what a
beat looks like is clearest in the average of all of them. Both are measured here, without parameters, at about 100 Hz,
where a QRS complex has its energy; two small layers read them. Missing leads and padded samples have no say.

Legend: B batch, L leads, T samples, t samples at about 100 Hz, W samples of a beat, G lead groups, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COARSE_HZ = 100.0
BEFORE, AFTER = 0.40, 0.50
"""Seconds of a beat around the middle of its QRS complex: from a P wave with a PR interval of 320 ms to the T wave."""
REFRACTORY = 0.2
"""Seconds in which no second beat can follow."""
SMALLEST_SHARE = 0.25
"""Of the usual peak of the envelope: what is lower is a P or T wave."""
SILENT = 1e-8
"""Mean squared slope (mV per 20 ms, squared) below which a lead says nothing of beats."""
WANDER_SECONDS = 1.2
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
BIN_WIDTH = 0.06
STATISTICS = 11 + len(BINS)
USUAL_RR = 0.8
BEAT_SCALE = 3.0
"""Brings an averaged beat (mV) to about unit spread."""


class Coarse(NamedTuple):
    """Signal at about 100 Hz: signal float32 (B, L, t) mV, recorded bool (B, L, t), rate in Hz."""

    signal: Tensor
    recorded: Tensor
    rate: float


def coarse_rate(sampling_rate: float) -> float:
    """What `coarse` makes of a sampling rate, in Hz: an integer part of it, near 100."""
    return sampling_rate / max(1, round(sampling_rate / COARSE_HZ))


def coarse(signal: Tensor, recorded: Tensor, sampling_rate: float) -> Coarse:
    """mV (B, L, T), recorded bool (B, L, T) or (B, L, 1) -> means of neighbouring samples, 0 where one of them was not
    recorded."""
    factor = max(1, round(sampling_rate / COARSE_HZ))
    clean = torch.where(recorded, signal.float(), 0.0)
    if factor > 1:
        clean = F.avg_pool1d(clean, factor)
        if recorded.shape[-1] > 1:
            recorded = F.avg_pool1d(recorded.float(), factor) > 1 - 0.5 / factor
            clean = torch.where(recorded, clean, 0.0)
    there = recorded.expand(clean.shape)
    return Coarse(clean, there, sampling_rate / factor)


def _smooth(rows: Tensor, samples: float) -> Tensor:
    width = round(samples) | 1
    return F.avg_pool1d(rows, width, stride=1, padding=width // 2, count_include_pad=False)


def _moving_mean(rows: Tensor, samples: float) -> Tensor:
    """As `_smooth`, by running sums: a pooling kernel as wide as a second costs more than the rest of this file."""
    t, half = rows.shape[-1], round(samples) // 2
    place = torch.arange(t, device=rows.device)
    first, last = (place - half).clamp_min(0), (place + half + 1).clamp_max(t)
    sums = F.pad(rows.cumsum(dim=-1), (1, 0))
    return (sums[..., last] - sums[..., first]) / (last - first)


def find_beats(record: Coarse, least: float = SMALLEST_SHARE) -> Tensor:
    """bool (B, t): True at the middle of each QRS complex.

    The squared slope of every lead, relative to its own mean, averaged over the leads that move and smoothed over a
    QRS complex; a beat is its largest value within 200 ms, if that is a share `least` of what is usual in the record.
    A wide ectopic beat is slow: a smaller share finds more of them, and in complete heart block more P waves.
    """
    signal, recorded, rate = record
    step = recorded[..., 2:] & recorded[..., :-2]
    slope = torch.where(step, signal[..., 2:] - signal[..., :-2], 0.0).square()
    energy = slope.sum(dim=-1, keepdim=True) / step.sum(dim=-1, keepdim=True).clamp_min(1)
    moving = energy > SILENT
    relative = torch.where(moving, slope / energy.clamp_min(SILENT), 0.0).sum(dim=1)
    envelope = F.pad(relative / moving.sum(dim=1).clamp_min(1), (1, 1))[:, None]
    envelope = _smooth(_smooth(envelope, 0.08 * rate), 0.04 * rate)
    window = min(round(2 * rate), envelope.shape[-1])
    highest = F.max_pool1d(envelope, window, stride=max(1, window // 2)).sort(dim=-1).values
    usual = highest[..., highest.shape[-1] // 2, None]
    reach = round(REFRACTORY * rate)
    top = F.max_pool1d(envelope, 2 * reach + 1, stride=1, padding=reach)
    return ((envelope >= top) & (envelope > least * usual) & (envelope > 0))[:, 0]


def rhythm_statistics(beats: Tensor, rate: float) -> Tensor:
    """Beats bool (B, t) -> float32 (B, STATISTICS): rate, regularity and distribution of the RR intervals.

    In units of the mean RR interval of the record: spread; root mean square of successive differences, to the last and
    to the last but one (a bigeminus repeats every second beat); the longest and the shortest; the largest log ratio of
    neighbours, both ways; the share of neighbours that differ by a tenth; a soft histogram. The mean itself as a log,
    and whether there was an interval at all: without one everything but the mean is 0. Factors bring them to about unit
    spread.
    """
    time = torch.arange(beats.shape[1], device=beats.device)
    last = torch.where(beats, time, -1).cummax(dim=1).values
    before = F.pad(last[:, :-1], (1, 0), value=-1)
    first = beats & (before >= 0)
    at = before.clamp_min(0)
    rr = ((time - before).float() / rate).clamp(0.15, 4.0)
    second = first & first.gather(1, at)
    third = second & second.gather(1, at)
    previous = rr.gather(1, at)
    some = first.any(dim=1)
    mean = torch.where(some, _mean(rr, first), USUAL_RR)
    unit = rr / mean[:, None]
    successive = (unit - previous / mean[:, None]).square()
    alternate = (unit - previous.gather(1, at) / mean[:, None]).square()
    ratio = torch.where(second, (rr / previous).log(), 0.0)
    centres = torch.tensor(BINS, device=beats.device)
    near = torch.exp(-0.5 * ((unit[..., None] - centres) / BIN_WIDTH).square())
    histogram = torch.where(first[..., None], near, 0.0).sum(dim=1) / first.sum(dim=1, keepdim=True).clamp_min(1)
    figures = [
        2 * (mean / USUAL_RR).log(),
        5 * _mean((unit - 1).square(), first).sqrt(),
        5 * _mean(successive, second).sqrt(),
        5 * _mean(alternate, third).sqrt(),
        2 * ratio.amax(dim=1),
        2 * ratio.amin(dim=1),
        2 * (torch.where(first, unit, 1.0).amax(dim=1) - 1),
        3 * (1 - torch.where(first, unit, 1.0).amin(dim=1)),
        _mean((ratio.abs() > 0.1).float(), second),
        5 * _mean(ratio.abs(), second),
        some.float(),
    ]
    return torch.cat([torch.stack(figures, dim=1), histogram], dim=1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def beat_samples(rate: float) -> tuple[int, int]:
    """Samples of a beat before the middle of its QRS complex, and from there on."""
    return round(BEFORE * rate), round(AFTER * rate)


def levelled(record: Coarse) -> Tensor:
    """mV (B, L, t) without baseline wander, a moving mean of 1.2 s of what was recorded; 0 where nothing was."""
    signal, recorded, rate = record
    share = _moving_mean(recorded.float(), WANDER_SECONDS * rate).clamp_min(1e-3)
    return torch.where(recorded, signal - _moving_mean(signal, WANDER_SECONDS * rate) / share, 0.0)


def averaged_beat(record: Coarse, beats: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (mV) of all beats that lie whole within the record, each float32 (B, L, W).

    0 for a missing lead, and for a record without a whole beat. Baseline wander is taken away first
    (`levelled`). The sum over beats is a correlation with their places, which is cheapest by Fourier transform.
    """
    signal, recorded, rate = record
    before, after = beat_samples(rate)
    t = signal.shape[-1]
    place = torch.arange(t, device=signal.device)
    length = recorded.any(dim=1).sum(dim=1, keepdim=True)
    whole = beats & (place >= before) & (place + after <= length)
    count = whole.sum(dim=1)[:, None, None]
    level = levelled(record)
    size = max(2 * t, before + after)  # a record shorter than a beat has none whole, and still that shape
    places = torch.fft.rfft(whole.float(), n=size).conj()[:, None]

    def mean_of(rows: Tensor) -> Tensor:
        sums = torch.fft.irfft(torch.fft.rfft(rows, n=size) * places, n=size)
        return torch.cat([sums[..., size - before :], sums[..., :after]], dim=-1) / count.clamp_min(1)

    mean = mean_of(level)
    spread = (mean_of(level.square()) - mean.square()).clamp_min(1e-8).sqrt()
    there = recorded.any(dim=-1, keepdim=True) & (count > 0)
    return torch.where(there, mean, 0.0), torch.where(there, spread, 0.0)


class BeatView(nn.Module):
    """Averaged beat and its spread, each (B, 12, W) -> one vector per lead group (B, G, D)."""

    def __init__(self, groups: list[list[int]], sampling_rate: float, width: int, dropout: float) -> None:
        super().__init__()
        samples = sum(beat_samples(coarse_rate(sampling_rate)))
        self.groups = groups
        self.first = nn.ModuleList(nn.Linear(2 * len(leads) * samples, width) for leads in groups)
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in groups)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mean: Tensor, spread: Tensor, modulate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """modulate: what is done to the hidden units (B, D) of a group before they bend."""
        views = []
        dtype = next(self.parameters()).dtype
        for leads, first, second in zip(self.groups, self.first, self.second, strict=True):
            rows = torch.cat([mean[:, leads], spread[:, leads]], dim=1).flatten(1) * BEAT_SCALE
            hidden = first(rows.to(dtype))
            hidden = hidden if modulate is None else modulate(hidden)
            views.append(second(self.dropout(F.gelu(hidden))))
        return torch.stack(views, dim=1)


class RhythmView(nn.Module):
    """Statistics of the RR intervals (B, STATISTICS) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(STATISTICS, 4 * width), nn.Linear(4 * width, width)

    def forward(self, statistics: Tensor, modulate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """modulate: what is done to the hidden units (B, 4 D) before they bend."""
        hidden = self.first(statistics.to(self.first.weight.dtype))
        found: Tensor = self.second(F.gelu(hidden if modulate is None else modulate(hidden)))
        return found
