"""Random views of a record: what may change without changing the diagnosis.

Drawn on the CPU, the same for a row on every topology: (seed, step, global row, view) decides it. `draw_view` makes the
view there, too. `view_draws` draws a handful of numbers per row, and `viewed` makes the view of them on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Fraction, Strict, refuse
from cardialign.pretrain.methods.parts.device_draws import KEYS, white_noise
from cardialign.pretrain.methods.parts.draws import Draws

Millivolts = Annotated[float, Field(ge=0, le=1000)]


class ViewConfig(Strict):
    """How far a view may go from the record. Every default is ours: no publication of the field fixes them.

    shortest       a view is a window of at least this share of the recorded signal, anywhere in it; 1 = always the
                   whole record.
    roll           the view starts anywhere and goes on from the beginning where it ends: one beat is cut, none is lost.
    hidden_leads   chance of each recorded lead to be hidden; one of them always stays.
    scale          the amplitude is multiplied by up to this factor, or divided by it (one factor per record,
                   log-uniform).
    noise_mv       largest standard deviation of added white noise, mV (uniform from 0).
    wander_mv      largest amplitude of an added baseline wander, mV: one sine of 0.05 to 0.5 Hz per lead.
    """

    shortest: Annotated[float, Field(ge=1e-6, le=1)] = 0.5
    roll: bool = False
    hidden_leads: Fraction = 0.3
    scale: Annotated[float, Field(ge=1, le=1000)] = 1.25
    noise_mv: Millivolts = 0.05
    wander_mv: Millivolts = 0.2

    @model_validator(mode="after")
    def _something_changes(self) -> ViewConfig:
        numbers = self.model_dump()
        if all(numbers[name] == still for name, still in self.still().items()):
            refuse([f"every view is the record itself; set at least one of {', '.join(self.still())}"])
        return self

    @classmethod
    def still(cls) -> dict[str, float]:
        """The value of each setting with which it changes nothing."""
        return {"shortest": 1.0, "roll": False, "hidden_leads": 0.0, "scale": 1.0, "noise_mv": 0.0, "wander_mv": 0.0}


class ViewsConfig(ViewConfig):
    """How far a view may go that is made on the device: all of `ViewConfig`, and four more.

    Published ranges, where there are any ([mem]: from memory of the paper, not looked up; numbers of normalised signals
    have no millivolts):
    shortest      0.5, then resized to the whole length: Mehari & Strodthoff 2022 [mem], "random resized crop".
    hidden_leads  0.5: Oh et al. 2022, "random lead masking".
    noise_mv      0.1 to 0.2 of a normalised signal learns best, less and more is worse: Soltanieh et al. 2022.
    hidden_time   0.5: Mehari & Strodthoff 2022 [mem], "time out".
    pieces        8: TS-TCC (Eldele et al. 2021), "permutation".
    scale, wander_mv and mains_mv are ours. None of the defaults is published.

    resize       the window is stretched to the recorded length: the heart then seems slower, and so does every wave.
    mains_mv     largest amplitude of added hum, mV: one sine of 50 or 60 Hz per record, with its own size in each
                 lead. A sampling rate that cannot hold it (at most twice its frequency) gets none.
    hidden_time  largest share of the view that is flat, 0 mV, in all leads at once: one stretch anywhere in it.
    pieces       the view is cut at random places into 1 to this many pieces, which change places.
    """

    resize: bool = False
    mains_mv: Millivolts = 0.0
    hidden_time: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    pieces: Annotated[int, Field(ge=1, le=64)] = 1

    @classmethod
    def still(cls) -> dict[str, float]:
        return {**super().still(), "mains_mv": 0.0, "hidden_time": 0.0, "pieces": 1}


def draw_view(
    batch: Batch, config: ViewConfig, draws: Draws, purpose: str, sampling_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view of every record: signal float32 (b, 12, T) mV, lead_mask bool (b, 12), valid_samples int64 (b,).

    The batch stays as it is.
    """
    leads, T = batch.signal.shape[1:]
    start, length = _window(batch, config, draws, purpose)
    time = np.arange(T)
    inside = time < length[:, None]
    ahead = np.zeros_like(length)
    if config.roll:
        ahead = np.floor(length * draws.uniform(f"{purpose} roll")).astype(np.int64)
    signal = np.zeros_like(batch.signal)
    for row, (first, count, shift) in enumerate(zip(start.tolist(), length.tolist(), ahead.tolist(), strict=True)):
        window = batch.signal[row, :, first : first + count]
        signal[row, :, : count - shift] = window[:, shift:]
        signal[row, :, count - shift : count] = window[:, :shift]
    signal *= np.exp(np.log(config.scale) * (2 * draws.uniform(f"{purpose} scale") - 1)).astype(np.float32)[
        :, None, None
    ]
    if config.wander_mv:
        height, hertz, phase = np.moveaxis(draws.uniform(f"{purpose} wander", 3, leads, 1), 1, 0)
        angle = 2 * np.pi * ((0.05 + 0.45 * hertz) * time / sampling_rate + phase)
        signal += (config.wander_mv * height * np.sin(angle)).astype(np.float32)
    if config.noise_mv:
        deviation = config.noise_mv * draws.uniform(f"{purpose} noise level", 1, 1)
        signal += (deviation * draws.normal(f"{purpose} noise", leads, T)).astype(np.float32)
    if config.wander_mv or config.noise_mv:
        signal[~np.broadcast_to(inside[:, None, :], signal.shape)] = 0.0
    return signal, hide_leads(batch.lead_mask, config.hidden_leads, draws.uniform(f"{purpose} leads", leads)), length


def _window(batch: Batch, config: ViewConfig, draws: Draws, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a view begins and how long it is, samples, int64 (b,)."""
    valid = batch.valid_samples.astype(np.int64)
    share = config.shortest + (1 - config.shortest) * draws.uniform(f"{purpose} length")
    length = np.maximum(1, np.floor(valid * share)).astype(np.int64)
    return np.floor((valid - length + 1) * draws.uniform(f"{purpose} start")).astype(np.int64), length


def hide_leads(lead_mask: np.ndarray, chance: float, uniform: np.ndarray) -> np.ndarray:
    """The lead mask with each recorded lead hidden by `chance`;
    the one with the largest draw stays where none would.
    """
    kept = lead_mask & (uniform >= chance)
    emptied = ~kept.any(axis=1) & lead_mask.any(axis=1)
    kept[emptied, np.where(lead_mask, uniform, -1.0).argmax(axis=1)[emptied]] = True
    return kept


def view_draws(
    batch: Batch, config: ViewsConfig, draws: Draws, purpose: str, sampling_rate: float
) -> dict[str, Tensor]:
    """What `viewed` makes one view of every record of: a few numbers per row, named "PURPOSE NUMBER".

    leads bool (b, 12), what is shown; start, length, ahead int64 (b,), samples: the first one in the record, how many
    there are in the view, how far it is rolled; scale float32 (b,); and, where they are asked for, window int64 (b,),
    how many samples of the record the view shows, wander float32 (b, 3, 12), hum float32 (b, 14), noise float32 (b,)
    and key int64 (b,), flat int64 (b, 2) and pieces int64 (b, 2, P).
    """
    leads = batch.signal.shape[1]
    start, window = _window(batch, config, draws, purpose)
    length = batch.valid_samples.astype(np.int64) if config.resize else window
    made: dict[str, np.ndarray] = {
        "leads": hide_leads(batch.lead_mask, config.hidden_leads, draws.uniform(f"{purpose} leads", leads)),
        "start": start,
        "length": length,
        "ahead": np.zeros_like(length),
        "scale": np.exp(np.log(config.scale) * (2 * draws.uniform(f"{purpose} scale") - 1)).astype(np.float32),
    }
    if config.resize:
        made["window"] = window
    if config.roll:
        made["ahead"] = np.floor(length * draws.uniform(f"{purpose} roll")).astype(np.int64)
    if config.wander_mv:
        height, hertz, phase = np.moveaxis(draws.uniform(f"{purpose} wander", 3, leads), 1, 0)
        sines = [config.wander_mv * height, (0.05 + 0.45 * hertz) / sampling_rate, phase]
        made["wander"] = np.stack(sines, axis=1).astype(np.float32)
    if config.mains_mv:
        made["hum"] = _hum(draws.uniform(f"{purpose} hum", leads + 2), config.mains_mv, sampling_rate)
    if config.noise_mv:
        made["noise"] = (config.noise_mv * draws.uniform(f"{purpose} noise level")).astype(np.float32)
        made["key"] = draws.integers(f"{purpose} noise", 0, KEYS)
    if config.hidden_time:
        share, place = draws.uniform(f"{purpose} flat", 2).T
        count = np.floor(length * config.hidden_time * share)
        made["flat"] = np.stack([np.floor((length - count + 1) * place), count], axis=1).astype(np.int64)
    if config.pieces > 1:
        made["pieces"] = _pieces(draws.uniform(f"{purpose} pieces", 2 * config.pieces), length, config.pieces)
    return {f"{purpose} {name}": torch.from_numpy(each) for name, each in made.items()}


def _hum(uniform: np.ndarray, mains_mv: float, sampling_rate: float) -> np.ndarray:
    """Cycles per sample, phase, and the amplitude in each lead, mV, float32 (b, 2 + leads)."""
    hertz = np.where(uniform[:, 0] < 0.5, 50.0, 60.0)
    held = (2 * hertz < sampling_rate)[:, None]
    return np.concatenate(
        [(hertz / sampling_rate)[:, None], uniform[:, 1:2], np.where(held, mains_mv * uniform[:, 2:], 0.0)], axis=1
    ).astype(np.float32)


def _pieces(uniform: np.ndarray, length: np.ndarray, most: int) -> np.ndarray:
    """Where each piece of the view begins, and where it stood before, int64 (b, 2, most), in the order of the view.

    Pieces that a record does not have are empty.
    """
    count = 1 + np.floor(uniform[:, 0] * most)
    asked = np.arange(1, most) < count[:, None]
    cuts = np.sort(np.where(asked, np.floor(uniform[:, 1:most] * length[:, None]), length[:, None]), axis=1)
    begins = np.concatenate([np.zeros((len(length), 1)), cuts], axis=1)
    sizes = np.diff(begins, axis=1, append=length[:, None])
    order = uniform[:, most:].argsort(axis=1, kind="stable")
    sizes = np.take_along_axis(sizes, order, axis=1)
    places = np.cumsum(sizes, axis=1) - sizes
    return np.stack([places, np.take_along_axis(begins, order, axis=1)], axis=1).astype(np.int64)


def viewed(signal: Tensor, drawn: Mapping[str, Tensor], purpose: str) -> tuple[Tensor, Tensor, Tensor]:
    """Signal (b, 12, T) mV and what `view_draws` drew -> the view: signal, lead_mask bool (b, 12), valid_samples
    int64 (b,). On the device of the signal, which stays as it is.
    """
    given = {name.removeprefix(f"{purpose} "): each for name, each in drawn.items() if name.startswith(f"{purpose} ")}
    time = torch.arange(signal.shape[-1], device=signal.device)
    length = given["length"][:, None]
    made = _moved(signal, given, time) * given["scale"][:, None, None]
    if "wander" in given:
        height, cycles, phase = given["wander"][..., None].unbind(dim=1)
        made = made + height * torch.sin(2 * torch.pi * (cycles * time + phase))
    if "hum" in given:
        angle = 2 * torch.pi * (given["hum"][:, :1] * time + given["hum"][:, 1:2])
        made = made + given["hum"][:, 2:, None] * torch.sin(angle)[:, None]
    if "noise" in given:
        made = made + given["noise"][:, None, None] * white_noise(given["key"], *signal.shape[1:])
    inside = time < length
    if "flat" in given:
        first, count = given["flat"][:, :1], given["flat"][:, 1:]
        inside = inside & ~((time >= first) & (time < first + count))
    return torch.where(inside[:, None], made, 0.0), given["leads"], given["length"]


def _moved(signal: Tensor, given: Mapping[str, Tensor], time: Tensor) -> Tensor:
    """The record's samples where the view has them, (b, 12, T): pieces exchanged, rolled, resized, cut out."""
    length = given["length"][:, None]
    place = time.expand(len(signal), -1)
    if "pieces" in given:
        begins, stood = given["pieces"].unbind(dim=1)
        which = torch.searchsorted(begins.contiguous(), place.contiguous(), right=True) - 1
        place = place - begins.gather(1, which) + stood.gather(1, which)
    place = torch.where(time < length, (place + given["ahead"][:, None]) % length, 0)
    last, start = signal.shape[-1] - 1, given["start"][:, None]
    if "window" not in given:
        return signal.gather(2, (start + place).clamp_max(last)[:, None].expand_as(signal))
    exact = place * ((given["window"][:, None] - 1).double() / (length - 1).clamp_min(1))
    below = exact.floor().long()
    share = (exact - below).to(signal.dtype)[:, None]
    low, high = ((start + below + more).clamp_max(last)[:, None].expand_as(signal) for more in (0, 1))
    first = signal.gather(2, low)
    return torch.where(share > 0, torch.lerp(first, signal.gather(2, high), share.expand_as(signal)), first)


def half_of(signal: Tensor, valid: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """The first or the second half of what was recorded, at the beginning: signal (b, 12, T), valid samples (b,).

    What stands behind the half means nothing.
    """
    length = (valid // 2).clamp_min(1)
    time = torch.arange(signal.shape[-1], device=signal.device) + half * length[:, None]
    return signal.gather(2, time.clamp_max(signal.shape[-1] - 1)[:, None].expand_as(signal)), length
