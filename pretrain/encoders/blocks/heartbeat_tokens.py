"""Heartbeats as tokens: what each lead shows of each beat, from half-way to the beat before to half-way to the next.

Beats are found in all leads together, on the device (`blocks.beats`). A record has as many places for beats as the
finder can find, one per 200 ms, so no rate is too fast and no lead is cut off. A record in which it finds none (a flat
line) is cut into windows of even distance: what nobody found is not what nobody recorded.
Source: the QRS tokeniser of HeartLang (Jin et al. 2025), which looks for beats in single leads, and cuts the list of
all leads off after 256 of them.

Legend: B batch, L leads, t samples at about 100 Hz, M places for beats, N = L M tokens, W samples of a token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.pretrain.encoders.blocks.beats import REFRACTORY, Coarse, coarse_rate, find_beats, levelled

WINDOW_SECONDS = 0.96
"""96 samples at 100 Hz, the R peak in the middle."""
LEAST_SHARE = 0.18
"""Of the usual peak that a beat has: at a quarter, which is right for statistics of a rhythm, a third of the premature
ventricular beats would be no token."""


class Heartbeats(NamedTuple):
    """Tokens lead after lead: beat m of lead l is token l M + m.

    values float32 (B, N, W), 0 outside `inside`; inside bool (B, N, W): recorded samples of this beat, nearer to it
    than to its neighbours; mask bool (B, N): a beat is there and the lead was recorded; seconds float32 (B, N) of its
    middle, 0 where none is there.
    """

    values: Tensor
    inside: Tensor
    mask: Tensor
    seconds: Tensor


def window_samples(sampling_rate: float) -> int:
    """W of signals of that rate in Hz."""
    return 2 * round(WINDOW_SECONDS * coarse_rate(sampling_rate) / 2)


def most_beats(samples: int, sampling_rate: float) -> int:
    """M of records of that many samples."""
    factor, rate = max(1, round(sampling_rate / coarse_rate(sampling_rate))), coarse_rate(sampling_rate)
    return max(1, math.ceil((samples // factor) / (round(REFRACTORY * rate) + 1)))


def beat_places(record: Coarse, most: int, window: int) -> tuple[Tensor, Tensor]:
    """Middle samples of the beats in their order, int64 (B, most), t where there is none; and where one is, bool."""
    recorded = record.recorded.any(dim=1)
    t = recorded.shape[1]
    time = torch.arange(t, device=recorded.device)
    found = find_beats(record, LEAST_SHARE) & recorded
    # Maxima of a flat top are one beat, the first of them.
    reach = round(REFRACTORY * record.rate / 2)
    counted = F.pad(found.long().cumsum(dim=1), (reach + 1, 0))
    found = found & (counted[:, reach : reach + t] == counted[:, :t])
    even = (time % window == window // 2) & recorded
    found = torch.where(found.any(dim=1, keepdim=True), found, even)
    places = torch.where(found, time, t).sort(dim=1).values[:, :most]
    places = F.pad(places, (0, most - places.shape[1]), value=t)
    return places, places < t


def cut_beats(record: Coarse, beats_in: Coarse, most: int, window: int) -> Heartbeats:
    """The tokens of `record`, with the beats of `beats_in`: the same signal in mV, where the first is normalised."""
    signal, recorded, rate = record
    B, L, t = signal.shape
    places, there = beat_places(beats_in, most, window)
    half = window // 2
    before = F.pad(places[:, :-1], (1, 0), value=-2 * window)
    after = F.pad(places[:, 1:], (0, 1), value=t)
    after = torch.where(after < t, after, places + 2 * window)
    at = places[..., None] + torch.arange(-half, half, device=signal.device)  # (B, M, W)
    own = (2 * at >= (before + places)[..., None]) & (2 * at < (places + after)[..., None])
    own = own & there[..., None] & (at >= 0) & (at < t)
    index = at.clamp(0, t - 1).flatten(1)[:, None].expand(B, L, most * window)
    inside = own[:, None] & recorded.gather(2, index).unflatten(2, (most, window))  # (B, L, M, W)
    values = torch.where(inside, levelled(record).gather(2, index).unflatten(2, (most, window)), 0.0)
    seconds = torch.where(there, places, 0).float() / rate
    return Heartbeats(
        values.flatten(1, 2),
        inside.flatten(1, 2),
        inside.any(dim=-1).flatten(1),
        seconds.repeat(1, L),
    )
