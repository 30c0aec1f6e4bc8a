"""What a device measured of a beat, in the words of a report: intervals in ms, axes in degrees.

    PR = qrs_onset - p_onset,   QRS = qrs_end - qrs_onset,   QT = t_end - qrs_onset
Numbers alone, no judgement: "prolonged" would be a diagnosis. What was not measured (29999 in MIMIC-IV-ECG) or cannot
be so in a living heart is not said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LIMITS = {"RR interval": (150, 6000), "PR interval": (40, 800), "QRS duration": (20, 400), "QT interval": (100, 1000)}
"""ms, both ends included: from a newborn's tachycardia at 400/min to an escape rhythm at 10/min."""
LATEST = 5000
"""ms from the start of the averaged beat; what lies later was not measured."""
AXES = ("P axis", "QRS axis", "T axis")


def interval_statements(values: Sequence[float]) -> tuple[str, ...]:
    """rr_interval, p_onset, p_end, qrs_onset, qrs_end, t_end in ms, p_axis, qrs_axis, t_axis in degrees, NaN for what
    is not known -> statements such as "PR interval 164 ms", in this order: RR, PR, QRS, QT, axes of P, QRS and T."""
    rr, p_onset, _, qrs_onset, qrs_end, t_end, *axes = map(float, values)
    p_onset, qrs_onset, qrs_end, t_end = (
        each if 0 <= each <= LATEST else math.nan for each in (p_onset, qrs_onset, qrs_end, t_end)
    )
    measured = (rr, qrs_onset - p_onset, qrs_end - qrs_onset, t_end - qrs_onset)
    said = [
        f"{name} {round(ms)} ms"
        for (name, (least, most)), ms in zip(LIMITS.items(), measured, strict=True)
        if least <= ms <= most
    ]
    return (
        *said,
        *(f"{name} {_turned(angle)} degrees" for name, angle in zip(AXES, axes, strict=True) if _is_axis(angle)),
    )


def _is_axis(angle: float) -> bool:
    return -360 <= angle <= 360


def _turned(angle: float) -> int:
    """The same direction from -179 to 180 degrees."""
    return -((180 - round(angle)) % 360 - 180)
