"""Random numbers in great number, made on the device from a key per row: the same on every device and topology.

The bits are those of a counter, mixed as in SplitMix64 (Steele et al. 2014). A key comes from `Draws.integers`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KEYS = 2**52
"""Keys are below it: float64 holds each of them."""


def white_noise(key: Tensor, *shape: int) -> Tensor:
    """float32 (b, *shape), standard normal, decided by the keys int64 (b,) alone (Box and Muller 1958)."""
    bits = _counted(key, shape)
    radius = (((bits >> 32) & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
    angle = ((bits & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
    return (torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * torch.pi * angle)).float()


def uniform(key: Tensor, *shape: int) -> Tensor:
    """float64 (b, *shape) between 0 and 1, neither of them, decided by the keys int64 (b,) alone."""
    return (((_counted(key, shape) >> 11) & (2**53 - 1)).double() + 0.5) * 2.0**-53


def gumbel_noise(key: Tensor, *shape: int) -> Tensor:
    """float32 (b, *shape), standard Gumbel: what to add to log odds so that the largest is a draw from them."""
    return -torch.log(-torch.log(uniform(key, *shape).clamp_max(1 - 2.0**-53))).float()


def _counted(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """64 random bits, int64 (b, *shape)."""
    count = torch.arange(math.prod(shape), device=key.device).reshape(shape)
    return _mixed(_mixed(key).reshape(-1, *(1 for _ in shape)) + count * -7046029254386353131)  # 0x9E3779B97F4A7C15


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * -7723592293110705685  # 0x94D049BB133111EB
    return bits ^ ((bits >> 31) & (2**33 - 1))
