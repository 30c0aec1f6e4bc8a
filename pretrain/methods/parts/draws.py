"""Random draws of a step that belong to rows of the global batch: the same for a row, on whichever rank and in whichever thread it is computed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

_PER_COUNT = 4
"""64-bit numbers that Philox makes from one value of its counter."""


@dataclass(frozen=True)
class Draws:
    """Draws of optimizer step `step` (0-based) for `rows`, this rank's slice of the global batch.

    Every call names its purpose ("view 1", "mask"): (seed, step, global row, purpose) decides a number, nothing else does. Two calls with one
    purpose give the same numbers.
    """

    seed: int
    step: int
    rows: slice

    def uniform(self, purpose: str, *shape: int) -> np.ndarray:
        """float64 (b, *shape) in [0, 1)."""
        size = math.prod(shape)
        counts = -(-size // _PER_COUNT)  # counter values per row: rows never share one
        rows = self.rows.stop - self.rows.start
        generator = np.random.Philox(key=self._key(purpose), counter=self.rows.start * counts)
        raw = generator.random_raw(rows * counts * _PER_COUNT).reshape(rows, -1)[:, :size]
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(rows, *shape)

    def normal(self, purpose: str, *shape: int) -> np.ndarray:
        """float64 (b, *shape), standard normal (Box and Muller 1958)."""
        pairs = self.uniform(purpose, 2, *shape)
        return np.sqrt(-2.0 * np.log1p(-pairs[:, 0])) * np.cos(2.0 * np.pi * pairs[:, 1])

    def integers(self, purpose: str, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 (b, *shape), low <= n < high."""
        return low + np.floor(self.uniform(purpose, *shape) * (high - low)).astype(np.int64)

    def chosen(self, purpose: str, count: int, of: int, *shape: int) -> np.ndarray:
        """bool (b, *shape, of) with exactly `count` True along the last axis, every choice equally likely."""
        order = self.uniform(purpose, *shape, of).argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")
        return order < count

    def permutation(self, purpose: str, length: int) -> np.ndarray:
        """int64 (length,): one permutation of the whole global batch, the same on every rank."""
        raw = np.random.Philox(key=self._key(f"whole/{purpose}")).random_raw(length)
        return raw.argsort(kind="stable").astype(np.int64)

    def _key(self, purpose: str) -> int:
        label = f"{self.seed}/{self.step}/{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(label, digest_size=16).digest(), "little")
