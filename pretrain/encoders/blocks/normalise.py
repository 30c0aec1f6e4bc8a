"""Signal normalisation on the device, so that every recipe reads the same shards.

Missing leads and padded samples never count.

Legend: B batch, L leads, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMALISATIONS: tuple[str, ...] = ("none", "centred", "minmax", "zscore", "lead-std")
FLAT_MV = 1e-6
"""A spread below this (mV) is a flat line; it becomes 0 instead of amplified rounding noise."""


def recorded_samples(signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None) -> Tensor:
    """bool (B, L, T) or (B, L, 1): True where a sample was recorded.
    valid_samples None says that no record of the batch is padded.
    """
    if valid_samples is None:
        return lead_mask[:, :, None]
    time = torch.arange(signal.shape[-1], device=signal.device)
    return lead_mask[:, :, None] & (time < valid_samples[:, None])[:, None, :]


def normalise(signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None, method: str) -> Tensor:
    """mV (B, L, T) -> same shape, 0 wherever nothing was recorded (whatever stood there, NaN included).

    none      mV as recorded (keeps voltage criteria: LVH, low voltage).
    centred   each lead minus its mean: mV still, without the offset of a recorder that keeps the electrodes' voltage.
    minmax    one minimum and maximum per record over all leads and time -> [0, 1] (MERL, MELP).
    zscore    one mean and standard deviation per record over all leads and time (ST-MEM).
    lead-std  each lead minus its mean, divided by its own standard deviation (fairseq-signals); a flat lead becomes 0.
    Statistics are taken in float32. Raises ValueError for another method.
    """
    recorded = recorded_samples(signal, lead_mask, valid_samples)
    signal = torch.where(recorded, signal.float(), 0.0)
    if method == "none":
        return signal
    if method == "minmax":
        low = torch.where(recorded, signal, torch.inf).amin(dim=(1, 2), keepdim=True)
        high = torch.where(recorded, signal, -torch.inf).amax(dim=(1, 2), keepdim=True)
        scaled = (signal - low) / (high - low).clamp_min(FLAT_MV)
    elif method in ("centred", "zscore", "lead-std"):
        over = (1, 2) if method == "zscore" else (2,)
        weight = recorded.expand(signal.shape).float()
        count = weight.sum(dim=over, keepdim=True).clamp_min(1.0)
        mean = signal.sum(dim=over, keepdim=True) / count
        centred = torch.where(recorded, signal - mean, 0.0)
        deviation = (centred.square().sum(dim=over, keepdim=True) / count).sqrt()
        unit = 1.0 if method == "centred" else deviation.clamp_min(FLAT_MV)
        scaled = torch.where(deviation > FLAT_MV, centred / unit, 0.0)
    else:
        raise ValueError(f"unknown normalisation {method!r}; known: {', '.join(NORMALISATIONS)}")
    return torch.where(recorded, scaled, 0.0)
