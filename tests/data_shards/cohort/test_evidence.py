"""The leads that are said to hold the primary evidence are those in which a finding changes the drawn waveform most."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.cohort.evidence import EVIDENCE, evidence_leads
from cardialign.data_shards.cohort.findings import FINDINGS
from tests.support.cohort_measures import LEADS, measured

WINDOWS = {"P": (-220, -20), "QRS": (-10, 150), "ST": (120, 220), "T": (220, 420)}
SIGNED = {"ISTE": 1, "ASTE": 1, "LSTE": 1, "STD": -1}
"""ST is raised, or lowered, in them; elsewhere it is the mirror image."""
LIMB_GAIN = {"LVOLT"}
"""Small limb leads lose little in mV, and most of what they had."""


@pytest.mark.parametrize("code", [code for code in EVIDENCE if code not in LIMB_GAIN])
def test_the_finding_changes_these_leads_most(code: str) -> None:
    """Against the same person without it, over twelve people: the mean change of a lead that is named is larger."""
    change = dict.fromkeys(LEADS, 0.0)
    for seed in range(12):
        with_it, without = measured(code, seed), measured("NORM", seed)
        for wave in EVIDENCE[code].waves:
            for lead in LEADS:
                pair = [m.cut(lead, *WINDOWS[wave]) for m in (with_it, without)]
                length = min(map(len, pair))
                apart = float((pair[0][:length] - pair[1][:length]).mean()) * SIGNED.get(code, 0)
                change[lead] += apart if code in SIGNED else float(np.abs(pair[0][:length] - pair[1][:length]).mean())
    named = EVIDENCE[code].leads
    inside, outside = ([change[lead] for lead in LEADS if (lead in named) is one] for one in (True, False))
    assert np.mean(inside) > 1.2 * np.mean(outside), change


def test_low_voltage_takes_a_larger_share_of_the_limb_leads() -> None:
    shares = dict.fromkeys(LEADS, 0.0)
    for seed in range(12):
        with_it, without = measured("LVOLT", seed), measured("NORM", seed)
        for lead in LEADS:
            shares[lead] += (with_it.peak(lead) + with_it.trough(lead)) / (without.peak(lead) + without.trough(lead))
    named = EVIDENCE["LVOLT"].leads
    assert max(shares[lead] for lead in named) < min(shares[lead] for lead in LEADS if lead not in named)


def test_leads_are_known_of_findings_and_of_statements_that_mean_one_place() -> None:
    assert evidence_leads("RBBB") == evidence_leads("CRBBB") == ("V1", "V2")
    assert evidence_leads("IMI") == ("II", "III", "aVF"), "old and acute stand in the same leads"
    assert evidence_leads("STE_") == (), "of any region"
    assert evidence_leads("AFIB") == evidence_leads("NORM") == evidence_leads("no such code") == ()
    assert set(EVIDENCE) <= set(FINDINGS)
    for each in EVIDENCE.values():
        assert [lead for lead in LEADS if lead in each.leads] == list(each.leads) and len(each.leads) < 12
