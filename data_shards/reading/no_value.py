"""Numbers that stand for "no value" in files of numbers: what devices, R, SPSS, netCDF and NumPy write where nothing
was recorded."""

from __future__ import annotations

import numpy as np

_WHOLE = (9999.0, 99999.0, 999999.0, 9999999.0, *(float((1 << bits) - one) for bits in (15, 23, 31) for one in (0, 1)))
_FILLS = (1e20, float(np.float32(1e20)), 9.969209968386869e36)
"""Of masked arrays of NumPy, and of netCDF."""
_NEAREST = {99.0: 0.1, 999.0: 0.1, **dict.fromkeys((*_WHOLE, *_FILLS), 0.5)}
"""The number, whatever its sign -> by which share of it all other samples of its lead stay within, where it is none of
them: a voltage does not leap there from one sample to the next."""


def without_sentinels(rows: np.ndarray) -> np.ndarray:
    """Numbers (L, T) as a file holds them, before a gain or a unit, with NaN where a lead holds one of the numbers that
    stand for "no value" (-32768, -9999, 1e20 ...), all its other samples lying far from it. The same array where no
    lead does."""
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iuf":  # refused by who stores it
        return rows
    tops = np.maximum(*(np.abs(edge.reduce(rows, axis=1).astype(np.float64)) for edge in (np.fmax, np.fmin)))
    leads = [lead for lead, top in enumerate(tops.tolist()) if top in _NEAREST or top == np.inf]
    found: np.ndarray | None = None
    for lead in leads:
        sizes = np.abs(rows[lead].astype(np.float64))
        none = np.isin(sizes, _sentinels(sizes[np.isfinite(sizes)]))
        if none.any():
            found = rows.astype(np.float64) if found is None else found
            found[lead, none] = np.nan
    return rows if found is None else found


def _sentinels(sizes: np.ndarray) -> list[float]:
    """Which of the largest sizes of one lead are no samples."""
    told: list[float] = []
    while sizes.size and float(sizes.max()) in _NEAREST:
        told.append(float(sizes.max()))
        sizes = sizes[sizes < told[-1]]
    rest = float(sizes.max(initial=0.0))
    return [each for each in told if rest <= _NEAREST[each] * each]
