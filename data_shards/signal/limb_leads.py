"""Whether the limb leads of an array stand in the order that it is said to have: two of the six determine the others
(Einthoven's law, Goldberger's equations).

A file without names of its leads is read in the order that somebody took for granted. MIMIC-IV-ECG writes aVF before
aVL; others begin with the chest leads. Nothing else tells that the leads were exchanged.
"""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS

_ORDERS: dict[str, tuple[str, ...]] = {
    "I, II, III, aVR, aVF, aVL, V1 to V6 (as MIMIC-IV-ECG has them)": (
        *("I", "II", "III", "aVR", "aVF", "aVL"),
        *STANDARD_LEADS[6:],
    ),
    "V1 to V6, then I, II, III, aVR, aVL, aVF": (*STANDARD_LEADS[6:], *STANDARD_LEADS[:6]),
    "aVL, I, -aVR, II, aVF, III, V1 to V6 (Cabrera's)": ("aVL", "I", "-aVR", "II", "aVF", "III", *STANDARD_LEADS[6:]),
    "V6 to V1, then aVF, aVL, aVR, III, II, I": STANDARD_LEADS[::-1],
}
_CONTRADICTS, _FITS = 0.5, 0.35
"""Misfit from which leads do not stand in the order that is said, and up to which they do in another one.

Of 406 real records of PTB-XL (folds 1 to 9), CPSC2018, CSN, CODE-15% and ZZU-pECG none has more than 0.654, and with
aVL and aVF exchanged none less than 0.696. What lies between is told from another order by how well that one fits.
"""
_LEAST_MV = 0.02


def other_order(millivolts: np.ndarray) -> str:
    """In which order the rows of an array (12, T), said to be STANDARD_LEADS, stand where their limb leads fit another
    order of those in use, and not this one; "" where they fit this one, or none."""
    if len(millivolts) != len(STANDARD_LEADS) or not np.isfinite(millivolts).all():
        return ""
    centred = (millivolts - np.median(millivolts, axis=1, keepdims=True)).astype(np.float64)
    if (np.ptp(centred, axis=1) == 0).any() or _misfit(centred, STANDARD_LEADS) < _CONTRADICTS:
        return ""
    found = {_misfit(centred, order): name for name, order in _ORDERS.items()}
    return found[min(found)] if min(found) <= _FITS else ""


def _misfit(rows: np.ndarray, order: tuple[str, ...]) -> float:
    """The largest deviation of III, aVR, aVL, aVF from what I and II make of them, in parts of their own deviation."""
    one, two, three, right, left, foot = (
        -rows[order.index(f"-{lead}")] if f"-{lead}" in order else rows[order.index(lead)]
        for lead in STANDARD_LEADS[:6]
    )
    pairs = ((three, two - one), (right, -(one + two) / 2), (left, one - two / 2), (foot, two - one / 2))
    return max(
        float(np.sqrt(np.mean((lead - made) ** 2))) / max(float(lead.std()), float(made.std()), _LEAST_MV)
        for lead, made in pairs
    )
