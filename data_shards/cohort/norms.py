"""Published normal limits of the ECG from birth to adolescence: 2nd percentile, mean or median, 98th percentile by age.

Davignon, Rautaharju, Boisselle et al., Pediatr Cardiol 1:123, 1979/80: 2,141 children of twelve age groups from birth;
rate, frontal QRS axis, PR in II, R and S in V1, R in V6. Rijnbeek, Witsenburg, Schrama et al., Eur Heart J 22:702,
2001: 1,912 children of nine groups from 11 days; QRS duration over all leads and QTc (Bazett), the mean of the figure
for boys and that for girls. Rijnbeek's were compared with a transcript of his table of boys and girls, the ranges of
Davignon's with a public table. Davignon's middle values are from memory: Rijnbeek's, of other children, lie within 12
beats per minute, 15 degrees and 6 ms (PR) of them in every group; for anything but virtual patients take the paper's.
From 18 years on the limits are those of adults, as the other cohorts have them: Rijnbeek et al., J Electrocardiol
47:914, 2014 (rate, PR, axis turning left with age), Surawicz et al., Circulation 119:e235, 2009 (QRS, axis).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

ADULT = 18.0
"""Years from which the limits of adults hold."""
DAYS_A_YEAR = 365.25
_INFANCY = (0, 1, 3, 7, 30, 91, 183, 365.25)
BANDS: tuple[tuple[float, float], ...] = (
    *((low / DAYS_A_YEAR, high / DAYS_A_YEAR) for low, high in pairwise(_INFANCY)),
    *pairwise((1, 3, 5, 8, 12, 16)),
)
"""Davignon's age groups in years."""
BAND_WORDS = (
    "0-1 d", "1-3 d", "3-7 d", "7-30 d", "1-3 mo", "3-6 mo", "6-12 mo", "1-3 y", "3-5 y", "5-8 y", "8-12 y", "12-16 y",
)  # fmt: skip

# Where the figures of a group stand, in years: the middle of the group, and the adult behind the last.
_DAVIGNON = (*((low + high) / 2 for low, high in BANDS), ADULT)
_RIJNBEEK = (0.04, 0.17, 0.37, 0.75, 2.0, 4.0, 6.5, 10.0, 14.0, ADULT)

_RATE = (
    (93, 91, 90, 107, 121, 106, 109, 89, 73, 65, 62, 60, 60),
    (123, 123, 129, 148, 149, 141, 134, 119, 108, 100, 91, 85, 74),
    (154, 159, 166, 182, 179, 186, 169, 151, 137, 133, 130, 119, 100),
)
_AXIS = (
    (59, 64, 77, 65, 31, 7, 6, 7, 6, 10, 6, 9, -15),
    (137, 134, 132, 110, 74, 60, 55, 55, 55, 65, 61, 59, 60),
    (192, 197, 187, 160, 114, 104, 99, 101, 104, 139, 116, 128, 90),
)
_PR = (
    (79, 81, 74, 73, 73, 74, 72, 81, 83, 90, 87, 92, 120),
    (107, 108, 102, 100, 98, 105, 106, 113, 119, 123, 128, 135, 150),
    (160, 139, 135, 138, 130, 146, 157, 148, 161, 163, 171, 176, 200),
)
_R_V1 = (
    (0.50, 0.50, 0.30, 0.30, 0.30, 0.30, 0.20, 0.20, 0.10, 0.05, 0.0, 0.0, 0.0),
    (1.38, 1.44, 1.29, 1.06, 0.97, 0.97, 0.94, 0.89, 0.81, 0.67, 0.54, 0.41, 0.25),
    (2.60, 2.70, 2.40, 2.10, 1.90, 2.00, 2.00, 1.80, 1.80, 1.40, 1.20, 1.00, 0.70),
)
_S_V1 = (
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.02, 0.03, 0.03, 0.03, 0.03),
    (0.85, 0.91, 0.66, 0.42, 0.50, 0.57, 0.64, 0.84, 1.02, 1.20, 1.19, 1.08, 1.00),
    (2.30, 2.10, 1.70, 1.10, 1.30, 1.70, 1.80, 2.10, 2.20, 2.30, 2.50, 2.20, 2.20),
)
_R_V6 = (
    (0.0, 0.0, 0.05, 0.25, 0.50, 0.60, 0.60, 0.60, 0.80, 0.80, 0.90, 0.70, 0.50),
    (0.42, 0.45, 0.52, 0.76, 1.16, 1.31, 1.26, 1.33, 1.48, 1.63, 1.63, 1.43, 1.20),
    (1.10, 1.20, 1.20, 1.60, 2.20, 2.25, 2.30, 2.25, 2.50, 2.60, 2.50, 2.30, 2.20),
)
_QRS = (
    (52, 50, 52, 52, 54, 58, 61, 66.5, 75, 76),
    (67, 63.5, 65, 66.5, 69.5, 73, 78.5, 83.5, 89, 92),
    (82, 77, 81.5, 83, 86.5, 90, 96.5, 101, 108.5, 112),
)
_QTC = (
    (378.5, 388.5, 388.5, 380, 382, 382.5, 373, 369, 366, 370),
    (416.5, 421.5, 420, 412.5, 414.5, 413.5, 410, 410.5, 410.5, 402),
    (455, 456, 450.5, 447.5, 451, 445, 446, 443.5, 453, 450),
)
_TABLES = {
    "rate": (_DAVIGNON, _RATE),
    "axis": (_DAVIGNON, _AXIS),
    "pr": (_DAVIGNON, _PR),
    "r_v1": (_DAVIGNON, _R_V1),
    "s_v1": (_DAVIGNON, _S_V1),
    "r_v6": (_DAVIGNON, _R_V6),
    "qrs": (_RIJNBEEK, _QRS),
    "qtc": (_RIJNBEEK, _QTC),
}
MEASURES = tuple(_TABLES)
"""rate in beats per minute, axis in degrees, r_v1, s_v1 and r_v6 in mV, pr, qrs and qtc in ms."""
_SIGMAS = 2.054
"""Standard deviations from the median to the 98th percentile of a normal distribution."""


class Limits(NamedTuple):
    """2nd percentile, middle, 98th percentile."""

    low: float
    middle: float
    high: float

    def at(self, deviations: float) -> float:
        """So many standard deviations from the middle, each side with its own."""
        side = self.high - self.middle if deviations > 0 else self.middle - self.low
        return self.middle + deviations * side / _SIGMAS


def limits(measure: str, age: float) -> Limits:
    """Of one of MEASURES at an age in years, between the groups along the logarithm of age in days."""
    ages, rows = _TABLES[measure]
    at, places = np.log1p(age * DAYS_A_YEAR), np.log1p(np.array(ages) * DAYS_A_YEAR)
    return Limits(*(float(np.interp(at, places, row)) for row in rows))
