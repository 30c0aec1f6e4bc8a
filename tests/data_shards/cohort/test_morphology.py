"""A healthy heart by age and sex, measured on the drawn leads."""

from __future__ import annotations

import numpy as np

from tests.support.cohort_measures import ADULTS, measured

NEWBORN = 3 / 365.25


def test_adults_have_normal_lead_geometry():
    for seed in ADULTS:
        m = measured("NORM", seed)
        r, s = [m.peak(f"V{i}") for i in range(1, 7)], [m.trough(f"V{i}") for i in range(1, 7)]
        assert r[0] < s[0] and r[3] > s[3] and r[5] > s[5], "the R wave grows from V1 to V4 and S is small at the end"
        assert r[0] < r[2] < r[3] * 1.3
        assert m.trough("aVR") > m.peak("aVR"), "aVR looks at the heart from behind: negative"
        assert m.t("aVR") < 0 < min(m.t("I"), m.t("II"), m.t("V4"), m.t("V6"))
        assert m.peak("II") > 0.2
        assert -30 <= m.axis() <= 95


def test_newborns_are_fast_and_right_sided():
    for seed in ADULTS:
        m = measured("NORM", seed, NEWBORN)
        assert m.axis() > 80
        assert m.peak("V1") > m.trough("V1") and m.peak("V1") > 0.4, "tall R in V1"
        assert 95 < np.median(m.rates()) < 175
        assert m.qrs_ms() < 75
        assert m.qt() < 330


def test_t_is_inverted_in_v1_through_childhood_and_upright_in_v2_of_adults():
    for seed in ADULTS:
        assert measured("NORM", seed, 0.5).t("V1") < 0
        assert measured("NORM", seed, 5.0).t("V1") < 0
        assert measured("NORM", seed, 5.0).t("V2") < 0.05
        assert measured("NORM", seed, 5.0).t("V5") > 0.1
        assert measured("NORM", seed, 50.0).t("V2") > 0.05


def test_age_slows_the_heart_and_turns_the_axis_left():
    ages = (NEWBORN, 0.7, 4.0, 10.0, 30.0, 80.0)
    rate = [np.mean([np.median(measured("NORM", s, age).rates()) for s in ADULTS]) for age in ages]
    axis = [np.mean([measured("NORM", s, age).axis() for s in ADULTS]) for age in ages]
    width = [np.mean([measured("NORM", s, age).qrs_ms() for s in ADULTS]) for age in ages]
    assert rate[0] > rate[2] > rate[3] > rate[4]
    assert axis[0] > 100 and axis[1] > axis[4] > axis[5]
    assert width[0] < width[2] < width[4]
