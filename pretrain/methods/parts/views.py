"""Random views of a record: what may change without changing the diagnosis.

Drawn on the CPU, the same for a row on every topology.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Fraction, Strict, refuse
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
        if (self.shortest, self.scale) == (1.0, 1.0) and not (
            self.roll or self.hidden_leads or self.noise_mv or self.wander_mv
        ):
            refuse(
                [
                    "every view is the record itself; "
                    "set at least one of shortest, roll, hidden_leads, scale, noise_mv, wander_mv"
                ]
            )
        return self


def draw_view(
    batch: Batch, config: ViewConfig, draws: Draws, purpose: str, sampling_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view of every record: signal float32 (b, 12, T) mV, lead_mask bool (b, 12), valid_samples int64 (b,).

    The batch stays as it is.
    """
    leads, T = batch.signal.shape[1:]
    valid = batch.valid_samples.astype(np.int64)
    length = np.maximum(
        1, np.floor(valid * (config.shortest + (1 - config.shortest) * draws.uniform(f"{purpose} length")))
    )
    length = length.astype(np.int64)
    start = np.floor((valid - length + 1) * draws.uniform(f"{purpose} start")).astype(np.int64)
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
    return signal, _hidden(batch.lead_mask, config.hidden_leads, draws.uniform(f"{purpose} leads", leads)), length


def _hidden(lead_mask: np.ndarray, chance: float, uniform: np.ndarray) -> np.ndarray:
    """The lead mask with each recorded lead hidden by `chance`;
    the one with the largest draw stays where none would.
    """
    kept = lead_mask & (uniform >= chance)
    emptied = ~kept.any(axis=1) & lead_mask.any(axis=1)
    kept[emptied, np.where(lead_mask, uniform, -1.0).argmax(axis=1)[emptied]] = True
    return kept
