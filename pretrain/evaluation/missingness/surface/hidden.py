"""Records of which leads and time are missing, as an encoder meets them in use.

A missing lead is out of the lead mask, and 0 mV. Of missing time what is left is one stretch, anywhere in the
recording, shown as a shorter record: from the first sample, its length in `valid_samples`. Draws are nested: what is
missing at 3 leads is missing at 6, and what is left of the time at 75 % lies within what is left at 50 %. The draws of
a record follow from (seed, its row, number of the draw), so that every encoder meets the same masks.
Legend: B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS

LEADS = len(STANDARD_LEADS)
_PURPOSE = 13
_ABSENT, _EVIDENT = 2 * LEADS, LEADS
"""By how many places a lead comes earlier in the order of removal that is not there, or that holds the evidence."""


def drawn(rows: np.ndarray, seed: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """rank int (B, 12), the place of each lead in the order in which they go; place float (B,) in [0, 1), where the
    stretch of time that is left lies."""
    ranks, places = [], []
    for row in rows.tolist():
        generator = np.random.default_rng([seed, _PURPOSE, row, draw])
        ranks.append(generator.permutation(LEADS))
        places.append(generator.random())
    return np.array(ranks), np.array(places)


def leads_left(lead_mask: np.ndarray, rank: np.ndarray, missing: int, first: np.ndarray | None = None) -> np.ndarray:
    """Lead mask bool (B, 12) where `missing` leads are missing in all, those counted that were never there.

    first bool (12,): leads that go before the others. Of a record with any lead one is left: `missing` is at most 11.
    """
    order = np.where(lead_mask, rank, rank - _ABSENT)
    if first is not None:
        order = np.where(first & lead_mask, order - _EVIDENT, order)
    position = order.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.asarray(lead_mask & (position >= missing))


def time_left(
    signal: np.ndarray, valid: np.ndarray, missing: float, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signal (B, 12, T) and valid samples int64 (B,) of what is left when a share of the recording is missing."""
    if missing == 0:
        return signal, valid.astype(np.int64)
    kept = np.maximum(1, np.floor(valid * (1 - missing) + 0.5)).astype(np.int64)
    start = np.floor((valid - kept + 1) * place).astype(np.int64)
    out = np.zeros_like(signal)
    for row, (first, count) in enumerate(zip(start.tolist(), kept.tolist(), strict=True)):
        out[row, :, :count] = signal[row, :, first : first + count]
    return out, kept


def shown(signal: np.ndarray, lead_mask: np.ndarray) -> np.ndarray:
    """The signal with 0 mV in leads that are missing: what is hidden cannot be read by mistake."""
    return np.where(lead_mask[:, :, None], signal, np.float32(0))


def among(leads: Sequence[str]) -> np.ndarray:
    """bool (12,): True for the leads of these names."""
    return np.isin(np.array(STANDARD_LEADS), list(leads))
