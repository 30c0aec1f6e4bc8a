"""Pieces of a record side by side, each scored alone: the crop-and-average of published protocols.

Legend: n records, W windows, T samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.errors import UsageError

AVERAGES = ("probabilities", "features")


@dataclass(frozen=True)
class Crop:
    """seconds of a piece; average: what is averaged over the pieces of a record.

    probabilities  a probe learns from every piece as a record of its own; the sigmoid of its log odds is averaged
    features       the pieces' features are averaged, and a probe learns from their mean; behind a linear head this is
                   the mean of the log odds
    Of cosines (zero-shot) the mean is taken by either word.
    """

    seconds: float
    average: str

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86_400:
            raise UsageError(f"crop of {self.seconds:g} seconds", "give a length above 0")
        if self.average not in AVERAGES:
            raise UsageError(f"crops averaged by {self.average!r:.40}", f"choose one of {', '.join(AVERAGES)}")


def starts(samples: int, length: int) -> list[int]:
    """First sample of each whole piece of `length` among T `samples`, side by side; a shorter rest is left out.

    One piece where the record is no longer than that.
    """
    return list(range(0, max(samples - length, 0) + 1, length))


def is_used(valid: np.ndarray, start: int, length: int) -> np.ndarray:
    """bool (n,): whether the piece that starts there lies wholly in the first `valid` samples, those that were
    recorded; of a record that is shorter than a piece, the first one counts.

    The rest behind the last whole piece is left out, as the benchmark's own code does it: a tenth of a second and
    padding would count as much as a whole piece.
    """
    return (valid >= start + length) | (start == 0)


def mean_over_windows(values: np.ndarray) -> np.ndarray:
    """(n, W, ...) with NaN for pieces that are not used -> the mean of the others (n, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found: np.ndarray = np.nanmean(values, axis=1, dtype=values.dtype)
    return found
