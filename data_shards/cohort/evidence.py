"""Where the primary evidence of each finding stands: the leads and the waves by which its textbook criterion is met.

Known by construction for virtual patients, whose findings follow these criteria (`waveform_changes`), and by the book
for everybody else: AHA/ACCF/HRS recommendations, Circulation 119:e235-e261, 2009 (Surawicz: conduction; Hancock:
hypertrophy and atria; Rautaharju: ST, T, QT; Wagner: ischaemia); Thygesen et al., Circulation 138:e618, 2018 (fourth
universal definition of infarction: ST elevation and Q waves by region).

A finding without an entry has no such leads: any one of them shows it (rhythm and rate, PR, QT, the spikes of a
pacemaker, the delta wave), or they differ between records (the region of inverted T waves), or it is everywhere
(pericarditis).
"""

from __future__ import annotations

from dataclasses import dataclass

from cardialign.data_shards.cohort.findings import FINDINGS


@dataclass(frozen=True)
class Evidence:
    """leads, in the order of STANDARD_LEADS, without which the criterion cannot be met; waves: P, QRS, ST or T."""

    leads: tuple[str, ...]
    waves: tuple[str, ...]


_LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")
_INFERIOR = ("II", "III", "aVF")
_LATERAL = ("I", "aVL", "V5", "V6")

EVIDENCE: dict[str, Evidence] = {
    "AFLT": Evidence(_INFERIOR, ("P",)),  # sawtooth waves, inferior
    "LBBB": Evidence(_LATERAL, ("QRS", "ST", "T")),  # Surawicz: broad notched R in I, aVL, V5, V6
    "RBBB": Evidence(("V1", "V2"), ("QRS",)),  # Surawicz: rsr', rsR' or rSR' in V1 or V2
    "LAFB": Evidence(("II", "III", "aVL", "aVF"), ("QRS",)),  # Surawicz: axis -45 to -90, qR in aVL; rS inferior
    "LVH": Evidence(("V1", "V5", "V6"), ("QRS",)),  # Hancock: Sokolow and Lyon, S in V1 with R in V5 or V6
    "RVH": Evidence(("V1", "V6"), ("QRS",)),  # Hancock: R in V1, S in V6
    "LAE": Evidence(("II", "V1"), ("P",)),  # Hancock: broad notched P in II, terminal force in V1
    "RAE": Evidence(_INFERIOR, ("P",)),  # Hancock: P above 0.25 mV, inferior
    "OIMI": Evidence(_INFERIOR, ("QRS",)),  # Thygesen: Q in two of II, III, aVF
    "OAMI": Evidence(("V1", "V2", "V3"), ("QRS",)),  # Thygesen: Q or QS in V1 to V3
    "ASTE": Evidence(("V1", "V2", "V3", "V4"), ("ST",)),  # Thygesen; Wagner: anterior
    "ISTE": Evidence(_INFERIOR, ("ST",)),
    "LSTE": Evidence(_LATERAL, ("ST",)),
    "STD": Evidence(("I", "II", "V4", "V5", "V6"), ("ST",)),  # as made here; Rautaharju names no leads
    "LVOLT": Evidence(_LIMB, ("QRS",)),  # under 0.5 mV in every limb lead
}
"""Finding of the table -> its primary evidence."""


def evidence_leads(code: str) -> tuple[str, ...]:
    """The leads of a finding, or of an SCP-ECG statement that stands for findings of one place; () where there are
    none.

    A statement of several findings (IMI: old or acute) has leads only if all of them have the same.
    """
    if code in FINDINGS:
        return EVIDENCE[code].leads if code in EVIDENCE else ()
    meant = [each.code for each in FINDINGS.values() if code in [statement for statement, _ in each.scp]]
    places = {EVIDENCE[each].leads if each in EVIDENCE else () for each in meant}
    return places.pop() if len(places) == 1 else ()
