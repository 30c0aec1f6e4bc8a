"""An interval holds the truth as often as it says, down to three positives a class, and always its own figure.

Truth is that of the binormal model, where AUROC = Phi(d / sqrt 2) for scores that are d standard deviations apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from cardialign.pretrain.evaluation.intervals import Sample, binormal_variance, change_interval, difference_interval
from cardialign.pretrain.evaluation.scoring import ClassTable, auroc, bootstrap_auroc, class_auroc, score_classes

RARE = ([3] * 16, [0.85] * 16)
MIXED = ([3, 3, 5, 8, 20, 40, 80, 100], [0.9, 0.7, 0.95, 0.8, 0.85, 0.9, 0.75, 0.97])


@dataclasses.dataclass(frozen=True)
class Drawn:
    scores: np.ndarray
    truth: np.ndarray
    patients: np.ndarray


def draw(seed: int, positives: list[int], aurocs: list[float], patients: int = 250, records: int = 1) -> Drawn:
    """Every class is had by so many of the patients; scores of a patient's `records` share half of their variance."""
    rng = np.random.default_rng([seed, 11])
    of = np.repeat(np.arange(patients), records)
    has = np.zeros((patients, len(positives)), dtype=bool)
    for c, count in enumerate(positives):
        has[rng.choice(patients, count, replace=False), c] = True
    own, shared = rng.normal(size=(len(of), len(positives))), rng.normal(size=(patients, len(positives)))
    noise = own if records == 1 else (own + shared[of]) / np.sqrt(2)
    return Drawn(noise + has[of] * norm.ppf(aurocs) * np.sqrt(2), has[of], of)


def scored(drawn: Drawn, *others: np.ndarray, resamples: int = 200) -> list[ClassTable]:
    names = [(str(c), str(c)) for c in range(drawn.truth.shape[1])]
    scores = [drawn.scores, *others]
    return score_classes(scores, drawn.truth, drawn.patients, names, resamples=resamples, seed=1)


def coverage(sets: int, positives: list[int], aurocs: list[float], **how: int) -> float:
    truth, held = np.mean(aurocs), 0
    for seed in range(sets):
        macro = scored(draw(seed, positives, aurocs, **how))[0].macro
        held += macro.low <= truth <= macro.high
    return held / sets


@pytest.mark.parametrize("case", [RARE, MIXED], ids=["sixteen classes of three", "three to a hundred"])
def test_the_macro_interval_holds_the_truth_about_as_often_as_it_says(case):
    assert (
        coverage(40, *case, patients=120) >= 0.85
    )  # at 95 %, one in 120 of all seeds would fail by luck; these do not


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positives", "aurocs", "how"),
    [
        (*RARE, {}),
        ([3] * 16, np.linspace(0.55, 0.97, 16).tolist(), {}),
        (*MIXED, {}),
        ([3, 3, 4, 5, 6, 8, 10] * 3, np.linspace(0.6, 0.98, 21).tolist(), {}),
        ([3, 4, 5, 8, 20, 30], [0.9, 0.7, 0.95, 0.8, 0.85, 0.9], {"patients": 120, "records": 3}),
        ([60, 50, 40, 60, 50], [0.9, 0.8, 0.85, 0.9, 0.7], {"patients": 150, "records": 4}),
    ],
    ids=["sixteen of three", "easy and hard", "three to a hundred", "twenty-one rare", "several records", "frequent"],
)
def test_the_macro_interval_holds_the_truth_in_93_to_97_of_100_sets(positives, aurocs, how):
    assert 0.93 <= coverage(500, positives, aurocs, **how) <= 0.97


def test_the_figure_lies_in_its_interval_where_every_class_has_one_positive():
    for seed in range(30):
        macro = scored(draw(seed, [1] * 16, [0.85] * 16), resamples=50)[0].macro
        assert 0 <= macro.low < macro.value < macro.high <= 1


def test_of_one_patient_there_is_no_interval_however_many_records_and_classes():
    drawn = draw(4, [3, 4], [0.8, 0.9])
    alone = scored(Drawn(drawn.scores, drawn.truth, np.zeros(len(drawn.truth), dtype=np.int64)))[0]
    assert 0 < alone.macro.value <= 1 and np.isnan(alone.macro.low) and np.isnan(alone.macro.high)


def test_a_small_sample_without_a_fault_is_no_certainty():
    truth = (np.arange(60) < 6)[:, None]
    drawn = Drawn(truth.astype(float), truth, np.arange(60))
    (table,) = scored(drawn)
    (entry,) = table.classes
    assert entry.auroc == entry.high == 1.0 and 0.5 < entry.low < 0.99
    reversed_ = scored(Drawn(-drawn.scores, truth, np.arange(60)))[0].classes[0]
    assert reversed_.auroc == reversed_.low == 0.0 and 0.01 < reversed_.high < 0.5


def test_with_many_patients_the_interval_is_that_of_delong():
    """DeLong, DeLong and Clarke-Pearson 1988: the variances of the placements of positives and of negatives."""
    drawn = draw(3, [200], [0.85], patients=600)
    values, truth = drawn.scores[:, 0], drawn.truth[:, 0]
    above = (values[truth][:, None] > values[~truth]).astype(float)
    error = np.sqrt(above.mean(1).var(ddof=1) / truth.sum() + above.mean(0).var(ddof=1) / (~truth).sum())
    (entry,) = scored(drawn, resamples=2000)[0].classes
    assert entry.high - entry.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_the_interval_is_wider_when_records_repeat_within_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60) < 0.4, 5)[:, None]
    scores = (np.repeat(rng.normal(size=60), 5) + truth[:, 0])[:, None]

    def width(patients: np.ndarray) -> float:
        entry = scored(Drawn(scores, truth, patients))[0].classes[0]
        return entry.high - entry.low

    assert width(np.arange(300) // 5) > 1.5 * width(np.arange(300))


def test_a_class_of_fewer_than_five_patients_has_no_interval_of_its_own():
    rows = [(e.positive_patients, np.isfinite(e.low)) for e in scored(draw(0, [3, 4, 5], [0.8] * 3))[0].classes]
    assert rows == [(3, False), (4, False), (5, True)]


def test_differences_are_paired_so_equal_scores_differ_by_exactly_nothing():
    drawn = draw(5, [20, 30, 25], [0.7, 0.7, 0.7])
    one, two, better = scored(drawn, drawn.scores, drawn.scores + drawn.truth)
    nothing, of_classes = one.less(two)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0) and (of_classes[0].low, of_classes[0].high) == (0, 0)
    gain, of_classes = better.less(one)
    assert 0 < gain.low < gain.value < gain.high and all(0 < each.low < each.high for each in of_classes)
    apart = better.macro.high - better.macro.low + one.macro.high - one.macro.low
    assert gain.high - gain.low < 0.8 * apart


def test_the_difference_of_a_class_of_few_patients_has_no_interval_of_its_own():
    drawn = draw(5, [20, 3], [0.7, 0.7])
    one, better = scored(drawn, drawn.scores + drawn.truth)
    macro, of_classes = better.less(one)
    assert np.isfinite([macro.low, of_classes[0].low]).all() and np.isnan([of_classes[1].low, of_classes[1].high]).all()


@pytest.mark.slow
def test_the_difference_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(40):
        drawn = draw(seed, [3, 5, 10, 30], [0.7] * 4, patients=120)
        further = norm.ppf(0.8) * np.sqrt(2) - norm.ppf(0.7) * np.sqrt(2)
        one, two = scored(drawn, drawn.scores + further * drawn.truth)
        gain, _ = two.less(one)
        held += gain.low <= 0.1 <= gain.high
    assert held >= 34


def test_the_variance_of_the_model_is_that_of_drawn_sets():
    rng = np.random.default_rng(0)
    truth = np.arange(45) < 5
    for value in (0.6, 0.9):
        scores = rng.normal(size=(3000, 45)) + truth * norm.ppf(value) * np.sqrt(2)
        found = np.var([auroc(row, truth)[0] for row in scores])
        assert binormal_variance(np.array(value), np.array(5), np.array(40)) == pytest.approx(found, rel=0.1)


def test_without_resamples_there_are_figures_and_no_intervals():
    macro = scored(draw(0, [8, 9], [0.8, 0.8]), resamples=0)[0].macro
    assert 0 < macro.value < 1 and np.isnan(macro.low) and np.isnan(macro.high)


def test_a_change_is_as_sure_as_its_classes_together() -> None:
    """(a - b) - (c - d) of independent classes: half = t sqrt(sum of 4 variances, corrected for k patients) / C."""
    generator = np.random.default_rng(5)
    sd, k, C, R = 0.02, 100, 4, 4000
    counts = np.full(C, k)

    def sample(having: np.ndarray) -> Sample:
        return Sample(np.full(C, 0.8), 0.8 + sd * generator.normal(size=(R, C)), having, np.full(C, 500))

    common = [(sample(counts), sign) for sign in (1.0, -1.0, -1.0, 1.0)]
    low, high = change_interval(common)
    expected = 1.97 * np.sqrt(4 * C * sd**2 * (k + 1) / (k - 1)) / C
    assert high == pytest.approx(expected, rel=0.05) and low == pytest.approx(-high)
    assert change_interval(common[:2]) == pytest.approx(difference_interval(common[0][0], common[1][0]), abs=1e-12)
    rare = [(Sample(each.point, each.resampled, np.array([5, k, k, k]), each.lacking), sign) for each, sign in common]
    assert change_interval(rare)[1] > 1.5 * high, "five patients say less of their own spread"
    one = [(Sample(each.point[:1], each.resampled[:, :1], np.array([1]), each.lacking[:1]), s) for each, s in rare]
    assert np.isnan(change_interval(one)).all(), "one patient has no spread"
    wide = [(Sample(each.point[:1], generator.random((R, 1)), np.array([3]), each.lacking[:1]), s) for each, s in rare]
    assert change_interval(wide) == (-2.0, 2.0), "four areas can differ by no more"
    assert change_interval(wide[:2]) == (-1.0, 1.0)


def test_few_resamples_find_no_difference_where_there_is_none() -> None:
    """Two encoders whose scores are drawn from one distribution: at 95 % one interval in twenty leaves 0 out, or
    fewer. Of 60 more than 8 do so once in 150 times."""
    positives, aurocs = [8, 20, 40], [0.8, 0.85, 0.7]
    counts = np.array(positives)
    outside = 0
    for seed in range(60):
        drawn = draw(seed, positives, aurocs, patients=80)
        noise = np.random.default_rng([seed, 12]).normal(size=drawn.truth.shape)
        both = [drawn.scores, noise + drawn.truth * norm.ppf(aurocs) * np.sqrt(2)]
        resampled = bootstrap_auroc(both, drawn.truth, drawn.patients, resamples=2, seed=seed)
        mine, theirs = (
            Sample(class_auroc(scores, drawn.truth), found, counts, 80 - counts)
            for scores, found in zip(both, resampled, strict=True)
        )
        low, high = difference_interval(mine, theirs)
        outside += not low <= 0 <= high
    assert outside <= 8
