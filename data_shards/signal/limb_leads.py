"""Whether the limb leads of an array stand in the order that it is said to have: two of the six determine the others
(Einthoven's law, Goldberger's equations).

A file without names of its leads is read in the order that somebody took for granted. MIMIC-IV-ECG writes aVF before
aVL; others begin with the chest leads. Names, too, are sometimes written over rows that stand otherwise. Nothing else
tells that the leads were exchanged.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

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
_ALONE = 0.3
"""Misfit up to which six rows are the limb leads in an order that nobody foresaw.

The twelve rows of 385 real records of PTB-XL, CPSC2018, CSN and CODE-15% shuffled: found in 97 %, and then always the
right six. The two that contradict the law as they are come no nearer to it than 0.39 in any other order.
"""
_LEAST_MV = 0.02
LIMB_LEADS = STANDARD_LEADS[:6]
_SAMPLES = 1000
"""Samples of a record are enough to hold its leads against a law that holds at each of them."""


class Exchanged(NamedTuple):
    """leads: those that do not stand where their names say; how: what was found, for a sentence."""

    leads: tuple[str, ...]
    how: str


def exchanged(limb: np.ndarray, gain: np.ndarray | float = 1.0) -> Exchanged | None:
    """Which of six leads (6, T), named I, II, III, aVR, aVL, aVF, stand for one another, or upside down: where they
    contradict the law as they are named, and fit it with two exchanged or one inverted. None where they fit as they
    are, or in no such way. Electrodes that were exchanged at the patient obey the law and are not found.
    Of 847 real records of PTB-XL, CPSC2018 and CSN (at 100 Hz) none is. Where every ninth was exchanged or inverted by
    code, all were found, and named as it was, but III for aVF in 43 of 94 and II for aVF in 80: these are too alike.

    gain (6, 1), or of all: counts per mV.
    """
    rows = limb[:, :: max(1, limb.shape[1] // _SAMPLES)] / np.asarray(gain, dtype=np.float64)
    rows = rows - np.median(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or (np.ptp(rows, axis=1) == 0).any() or _misfit(rows, LIMB_LEADS) < _CONTRADICTS:
        return None
    found = {each: _misfit(rows, order) for order, each in _SLIPS.items()}
    best = min(found, key=found.__getitem__)
    return best if found[best] <= _FITS else None


def _slips() -> dict[tuple[str, ...], Exchanged]:
    """Order in which the rows really stand -> what is wrong with their names."""
    found: dict[tuple[str, ...], Exchanged] = {}
    for a, b in itertools.combinations(LIMB_LEADS, 2):
        order = tuple({a: b, b: a}.get(lead, lead) for lead in LIMB_LEADS)
        found[order] = Exchanged((a, b), f"with {a} and {b} exchanged")
    for lead in LIMB_LEADS:
        order = tuple(f"-{each}" if each == lead else each for each in LIMB_LEADS)
        found[order] = Exchanged((lead,), f"with {lead} upside down")
    cabrera = ("aVL", "I", "-aVR", "II", "aVF", "III")
    return found | {
        cabrera: Exchanged(LIMB_LEADS, "in Cabrera's order"),
        tuple(lead.removeprefix("-") for lead in cabrera): Exchanged(LIMB_LEADS, "in Cabrera's order, aVR as it is"),
        LIMB_LEADS[::-1]: Exchanged(LIMB_LEADS, "in the reverse order"),
    }


_SLIPS = _slips()


def other_order(millivolts: np.ndarray) -> str:
    """In which order the rows of an array (12, T), said to be STANDARD_LEADS, stand where their limb leads fit another
    order, and not this one; "" where they fit this one, or none. Of an order that nobody foresaw only the places of the
    limb leads are known."""
    if len(millivolts) != len(STANDARD_LEADS) or not np.isfinite(millivolts).all():
        return ""
    centred = (millivolts - np.median(millivolts, axis=1, keepdims=True)).astype(np.float64)
    if (np.ptp(centred, axis=1) == 0).any() or _misfit(centred, STANDARD_LEADS) < _CONTRADICTS:
        return ""
    found = {_misfit(centred, order): name for name, order in _ORDERS.items()}
    return found[min(found)] if min(found) <= _FITS else _unforeseen(centred)


def _unforeseen(centred: np.ndarray) -> str:
    """The places of six rows (12, T) that obey the law as I, II, III, aVR, aVL, aVF; "" where no six do."""
    rows = centred[:, :: max(1, centred.shape[1] // _SAMPLES)]
    spread = rows.std(axis=1)
    least, places = _ALONE, None
    for one, two in itertools.permutations(range(len(rows)), 2):
        made = np.stack(_of_two(rows[one], rows[two]))
        apart = np.sqrt(np.mean((made[:, np.newaxis] - rows) ** 2, axis=-1))
        misfits = apart / np.maximum(np.maximum(made.std(axis=1)[:, np.newaxis], spread), _LEAST_MV)
        misfits[:, [one, two]] = np.inf
        nearest = misfits.argmin(axis=1)
        if len(set(nearest)) == len(made) and misfits.min(axis=1).max() <= least:
            least, places = misfits.min(axis=1).max(), (one, two, *nearest)
    if places is None:
        return ""
    named = dict(zip(places, LIMB_LEADS, strict=True))
    return f"{', '.join(named.get(row, '*') for row in range(len(rows)))} (*: not told by them)"


def _of_two(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """III, aVR, aVL and aVF as the leads I and II make them."""
    return two - one, -(one + two) / 2, one - two / 2, two - one / 2


def _misfit(rows: np.ndarray, order: tuple[str, ...]) -> float:
    """The largest deviation of III, aVR, aVL, aVF from what I and II make of them, in parts of their own deviation."""
    one, two, three, right, left, foot = (
        -rows[order.index(f"-{lead}")] if f"-{lead}" in order else rows[order.index(lead)]
        for lead in STANDARD_LEADS[:6]
    )
    pairs = zip((three, right, left, foot), _of_two(one, two), strict=True)
    return max(
        float(np.sqrt(np.mean((lead - made) ** 2))) / max(float(lead.std()), float(made.std()), _LEAST_MV)
        for lead, made in pairs
    )
