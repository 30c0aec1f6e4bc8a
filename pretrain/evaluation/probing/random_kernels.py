"""Random convolution kernels: features that were never trained, and a floor that trained ones must clear.

As ROCKET (Dempster, Petitjean & Webb 2020): kernels of 9 points with random weights, offsets, dilations and leads, of
each the largest response and the share of positive ones. Ours: the signal stays in millivolts, because voltage is a
finding; dilations and strides are times, so that 100 and 500 Hz see the same waves; only recorded samples count.
Legend: B batch, T samples, K kernels, N places of a kernel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec

POINTS = 9
STEP_MS = 10.0
LONGEST_MS = 640.0
UNIT_MV = 0.2
"""What one unit of a kernel's input is, mV: about the spread of a lead, so that offsets in (-1, 1) cut its waves."""


class RandomKernels:
    """A feature extractor that a seed decides: `features` gives 2 K numbers of a record."""

    def __init__(self, spec: SignalSpec, kernels: int = 1000, seed: int = 0) -> None:
        draw = np.random.default_rng([seed, kernels])
        self.stride = max(1, round(STEP_MS * spec.sampling_rate / 1000.0))
        longest = min(LONGEST_MS, 1000.0 * spec.seconds / POINTS)
        exponents = np.arange(1 + max(0, math.floor(math.log2(longest / STEP_MS))))
        chosen = np.sort(draw.choice(exponents, kernels))
        leads = len(STANDARD_LEADS)
        self.banks: list[tuple[int, Tensor, Tensor]] = []
        for exponent in exponents:
            count = int((chosen == exponent).sum())
            if not count:
                continue
            weights = draw.normal(size=(count, leads, POINTS))
            weights -= weights.mean(axis=2, keepdims=True)
            wanted = np.floor(2 ** draw.uniform(0, math.log2(leads + 1), count)).astype(int)
            rank = draw.uniform(size=(count, leads)).argsort(axis=1).argsort(axis=1)
            weights *= (rank < wanted[:, None])[..., None]
            offsets = draw.uniform(-1, 1, count)
            self.banks.append(
                (self.stride * 2 ** int(exponent), torch.from_numpy(weights).float(), torch.from_numpy(offsets).float())
            )
        self.width = 2 * kernels

    @torch.inference_mode()
    def features(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor) -> np.ndarray:
        """signal (B, 12, T) mV, lead_mask bool (B, 12), valid_samples int (B,) -> float32 (B, 2 K).

        A missing lead and what is behind the last sample are flat. Places whose middle lies there do not count.
        """
        T = signal.shape[-1]
        recorded = torch.arange(T) < valid_samples[:, None]
        units = torch.where(recorded[:, None] & lead_mask[..., None], signal.float(), 0.0) / UNIT_MV
        counted = recorded[:, :: self.stride]  # (B, N)
        found = []
        for dilation, weights, offsets in self.banks:
            padding = dilation * (POINTS // 2)
            response = F.conv1d(units, weights, offsets, self.stride, padding, dilation)  # (B, K', N)
            positive = ((response > 0) & counted[:, None]).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1)[:, None]
            highest = torch.where(counted[:, None], response, -torch.inf).amax(dim=-1)
            found += [torch.where(torch.isfinite(highest), highest, 0.0), positive]
        return torch.cat(found, dim=1).numpy()
