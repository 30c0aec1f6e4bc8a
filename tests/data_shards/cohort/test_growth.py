"""People from birth to 90 years against the published norms, measured on the drawn leads; findings against those norms.

The ranges below are Davignon's 2nd to 98th percentiles (Pediatr Cardiol 1:123, 1979/80) as the University of Chicago's
table of pediatric electrocardiography rounds them, in mm of 0.1 mV; QRS as of Rijnbeek (Eur Heart J 22:702, 2001).
"""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.cohort.for_age import CHANGES
from cardialign.data_shards.cohort.norms import MEASURES, limits
from cardialign.data_shards.cohort.patients import plan_cohort
from tests.support.cohort_measures import Measured, measured

SEEDS = range(10)
DAY, MONTH = 1 / 365.25, 1 / 12
PUBLISHED = {  # years: rate, axis, PR ms, QRS ms, R V1, S V1, R V6 in mm; middle of rate and axis
    2 * DAY: ((90, 160), (60, 197), (80, 150), (50, 86), (5, 27), (0, 23), (0, 12), 123, 134),
    18 * DAY: ((100, 182), (45, 160), (73, 150), (50, 86), (3, 22), (0, 16), (0, 17), 148, 110),
    4.5 * MONTH: ((105, 186), (0, 135), (74, 150), (53, 86), (3, 20), (0, 17), (5, 23), 141, 60),
    2.0: ((89, 165), (0, 110), (80, 160), (54, 89), (2, 18), (0.5, 21), (5, 24), 119, 55),
    6.5: ((65, 140), (0, 140), (90, 170), (60, 98), (0.5, 14), (0.3, 24), (4, 26), 100, 65),
    10.0: ((60, 130), (-15, 116), (87, 171), (62, 103), (0, 14), (0.3, 25), (4, 25), 91, 61),
}
RIJNBEEK = {  # his table, boys and girls: rate, axis and PR in II (medians); QRS and QTc: median, 2nd, 98th percentile
    0.5 * MONTH: ((160, 155), (97, 110), (99, 101), (67, 50, 85), (67, 54, 79), (413, 378, 448), (420, 379, 462)),
    2 * MONTH: ((152, 154), (87, 80), (98, 99), (64, 52, 77), (63, 48, 77), (419, 396, 458), (424, 381, 454)),
    4.5 * MONTH: ((134, 139), (66, 70), (106, 106), (66, 54, 85), (64, 50, 78), (422, 391, 453), (418, 386, 448)),
    9 * MONTH: ((128, 134), (68, 67), (114, 109), (69, 52, 86), (64, 52, 80), (411, 379, 449), (414, 381, 446)),
    2.0: ((119, 128), (64, 69), (118, 113), (71, 54, 88), (68, 54, 85), (412, 383, 455), (417, 381, 447)),
    4.0: ((98, 101), (70, 69), (121, 123), (75, 58, 92), (71, 58, 88), (412, 377, 448), (415, 388, 442)),
    6.5: ((88, 89), (70, 74), (129, 124), (80, 63, 98), (77, 59, 95), (411, 371, 443), (409, 375, 449)),
    10.0: ((78, 80), (70, 66), (134, 129), (85, 67, 103), (82, 66, 99), (411, 373, 440), (410, 365, 447)),
    14.0: ((73, 76), (65, 66), (139, 135), (91, 78, 111), (87, 72, 106), (407, 362, 449), (414, 370, 457)),
}
SLACK = 0.12
"""Of every width: beats breathe, a torso leans, and a threshold finds less than the whole of a QRS."""


@pytest.fixture(scope="module")
def healthy() -> dict[float, list[Measured]]:
    return {
        age: [measured("NORM", seed, age, by_age=True, seconds=4.0) for seed in SEEDS] for age in (*PUBLISHED, 40.0)
    }


def axis(m: Measured) -> float:
    """0..360: that of a newborn lies around 135 and beyond 180."""
    return (m.axis() + 60) % 360 - 60


def ratio(m: Measured) -> float:
    return m.peak("V1") / max(m.trough("V1"), 0.01)


@pytest.mark.parametrize("age", PUBLISHED)
def test_healthy_children_lie_within_the_published_limits_of_their_age(
    age: float, healthy: dict[float, list[Measured]]
) -> None:
    *ranges, rate, turned = PUBLISHED[age]
    found = [
        (
            float(np.median(m.rates())),
            axis(m),
            1000 * float(np.median(m.beats.pr)),
            float(m.qrs_ms()),
            *(10 * value for value in (m.peak("V1"), m.trough("V1"), m.peak("V6"))),
        )
        for m in healthy[age]
    ]
    for values, (low, high) in zip(zip(*found, strict=True), ranges, strict=True):
        room = SLACK * (high - low)
        assert low - room <= min(values) and max(values) <= high + room, (values, low, high)
    middle = np.median(np.array(found), axis=0)
    assert middle[0] == pytest.approx(rate, rel=0.12) and middle[1] == pytest.approx(turned, abs=25)


def test_the_right_ventricle_gives_way_and_t_in_v1_turns_twice(healthy: dict[float, list[Measured]]) -> None:
    """R exceeds S in V1 to about a year and no longer from 5 years on; T in V1: Dickinson, Heart 91:1626, 2005."""
    young, six, ten, adult = (np.array([ratio(m) for m in healthy[age]]) for age in (2 * DAY, 6.5, 10.0, 40.0))
    assert np.median(young) > 1.3 and np.median(six) < 0.9 and np.median(ten) < 0.7 and adult.max() < 1
    first = [measured("NORM", seed, 0.5 * DAY, by_age=True, seconds=4.0).t("V1") for seed in SEEDS]
    assert min(first) > 0
    for age in (18 * DAY, 4.5 * MONTH, 2.0, 6.5):
        assert max(m.t("V1") for m in healthy[age]) < 0
    grown = [measured("NORM", seed, 16.0, by_age=True, seconds=4.0).t("V1") for seed in SEEDS]
    assert min(grown) > 0


def test_read_as_an_adult_a_healthy_newborn_has_right_ventricular_hypertrophy(
    healthy: dict[float, list[Measured]],
) -> None:
    """Hancock et al., Circulation 119:e251, 2009: R in V1 over 0.6 mV, R over S there, axis beyond 90 degrees."""

    def as_adult(m: Measured) -> bool:
        return m.peak("V1") > 0.6 and ratio(m) > 1 and axis(m) > 90

    share = {age: np.mean([as_adult(m) for m in found]) for age, found in healthy.items()}
    assert share[2 * DAY] >= 0.6 and share[10.0] <= 0.1 and share[40.0] == 0


def test_findings_are_beyond_the_limits_of_the_age_and_may_be_health_at_another() -> None:
    def many(code: str, age: float) -> list[Measured]:
        return [measured(code, seed, age, by_age=True, seconds=4.0) for seed in range(6)]

    def rates(code: str, age: float) -> np.ndarray:
        return np.array([np.median(m.rates()) for m in many(code, age)])

    assert rates("STACH", 10.0).min() > 130 and rates("STACH", 10.0).max() < 182, "healthy at two weeks"
    assert rates("STACH", 2 * DAY).min() > 155
    assert rates("SBRAD", 2 * DAY).max() < 93 and rates("SBRAD", 2 * DAY).min() > 60, "healthy at 10 years"
    assert min(m.peak("V1") for m in many("RVH", 2 * DAY)) > 2.5
    assert min(m.peak("V1") for m in many("RVH", 10.0)) > 1.15
    assert np.mean([m.peak("V1") < 2.6 for m in many("RVH", 10.0)]) == 1, "within the limits of a newborn"
    assert min(axis(m) for m in many("RVH", 10.0)) > 105
    assert min(m.peak("V6") for m in many("LVH", 2 * DAY)) > 1.1
    assert min(m.peak("V6") for m in many("LVH", 10.0)) > 2.4
    pr = [1000 * m.beats.pr[0] for m in many("1AVB", 18 * DAY)]
    assert min(pr) > 140 and np.mean(np.array(pr) < 200) > 0.8, "no block in an adult"
    assert min(m.qrs_ms() for m in many("RBBB", 2 * DAY)) > 80
    assert set(CHANGES) >= {"SBRAD", "STACH", "1AVB", "RBBB", "LVH", "RVH"}


def test_adults_are_the_adults_of_every_other_cohort() -> None:
    for code in ("NORM", "RVH", "STACH"):
        here, there = (measured(code, 3, 44.0, by_age=by_age) for by_age in (True, False))
        assert all(np.array_equal(here.leads[lead], there.leads[lead]) for lead in here.leads)


def test_limits_are_in_order_at_every_age_and_ages_go_from_the_first_day_to_90_years() -> None:
    for measure in MEASURES:
        for age in np.geomspace(1e-4, 90, 60):
            low, middle, high = limits(measure, float(age))
            assert low < middle < high
    assert limits("rate", 2 * DAY) == pytest.approx((91, 123, 159)) and limits("rate", 18.5 * DAY).high > 180
    plan = plan_cohort(1200, 1200, "lifespan", 0, "balanced", ("NORM", "RVH", "LVH"))
    ages = np.array([patient.age for patient in plan])
    assert ages.min() < DAY and ages.max() > 80 and 0.05 < np.mean(ages < DAY) < 0.1
    newborn = [visit.findings for patient in plan if patient.age < DAY for visit in patient.visits]
    assert ("RVH",) in newborn and ("LVH",) in newborn


def test_intervals_are_those_of_rijnbeek_and_the_middle_of_davignon_is_near_his() -> None:
    for age, (rate, turned, pr, *of_boys_and_girls) in RIJNBEEK.items():
        for measure, boys, girls in zip(("qrs", "qtc"), of_boys_and_girls[::2], of_boys_and_girls[1::2], strict=True):
            middle, low, high = ((a + b) / 2 for a, b in zip(boys, girls, strict=True))
            assert limits(measure, age) == pytest.approx((low, middle, high), abs=0.6)  # ms; ages of groups are rounded
        for measure, of_his, apart in (("rate", rate, 12), ("axis", turned, 15), ("pr", pr, 6)):
            assert abs(limits(measure, age).middle - sum(of_his) / 2) <= apart + 0.5
