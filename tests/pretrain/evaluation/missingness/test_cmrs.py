"""CMRS by loops, at its ends, and with its interval against a normal mean; gaps as encoders are shown them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.missingness.cmrs import MARGIN, covered, preserved, separation
from cardialign.pretrain.evaluation.missingness.evaluate import MaskedScores, Scored, drawn_records
from cardialign.pretrain.evaluation.missingness.result import compare, comparison_lines, result_of
from cardialign.pretrain.evaluation.prompts import PromptClass, PromptSet
from cardialign.pretrain.evaluation.scoring import mean_over_records
from cardialign.pretrain.evaluation.task import EvaluationTask
from cardialign.pretrain.export.usable import without

N, C, D = 60, 4, 3
CODES = ("AFIB", "RBBB", "ISTE", "NORM")


def material(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random((N, C)) < 0.4
    truth[:, 0] |= ~truth.any(axis=1)
    truth[truth.all(axis=1), 1] = False
    whole = 0.3 * truth + 0.2 * generator.normal(size=(N, C))
    return (
        truth,
        whole.astype(np.float32),
        (0.1 * generator.normal(size=C)).astype(np.float32),
        generator.random(N) < 0.5,
    )


def test_separation_and_what_is_preserved_are_the_formulas() -> None:
    truth, whole, blank, _ = material()
    decided = np.random.default_rng(1).random((N, C)) < 0.8
    masked = whole * 0.6
    deltas = []
    for scores in (whole, np.broadcast_to(blank, truth.shape), masked):
        for i in range(N):
            own = [float(scores[i, c]) for c in range(C) if truth[i, c] and decided[i, c]]
            others = [float(scores[i, c]) for c in range(C) if not truth[i, c] and decided[i, c]]
            if own and others:
                deltas.append(sum(own) / len(own) - sum(others) / len(others))
            else:
                deltas.append(math.nan)
    expected = np.array(deltas).reshape(3, N)
    found = [separation(s, truth, decided) for s in (whole, np.broadcast_to(blank, truth.shape), masked)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    kept = preserved(found[2], found[0], found[1])
    for i in range(N):
        full, zero, gone = expected[:, i]
        if math.isnan(full) or not full > zero + MARGIN:
            assert math.isnan(kept[i])
        else:
            assert kept[i] == pytest.approx(min(max((gone - zero) / (full - zero), 0), 1), abs=1e-6)


def test_all_is_preserved_of_the_whole_and_nothing_of_a_blank() -> None:
    truth, whole, blank, _ = material()
    delta, zero = separation(whole, truth), separation(np.broadcast_to(blank, truth.shape), truth)
    inside = covered(delta, zero)
    assert 0.5 < inside.mean() < 1
    assert (preserved(delta, delta, zero)[inside] == 1).all() and (preserved(zero, delta, zero)[inside] == 0).all()
    assert (preserved(zero - 5, delta, zero)[inside] == 0).all(), "worse than nothing is nothing"


def test_the_interval_of_a_mean_is_that_of_its_patients() -> None:
    """Normal values of 40 patients, three equal records each: Student's t over the patients' means, in closed form."""
    values = np.random.default_rng(0).normal(size=40)
    found = mean_over_records(np.repeat(values, 3), np.repeat(np.arange(40), 3), resamples=2000, seed=0)
    half = 2.0227 * values.std(ddof=1) / math.sqrt(40)
    assert found.value == pytest.approx(values.mean()) and found.high - found.value == pytest.approx(half, rel=0.06)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    few = mean_over_records(values[:4], np.arange(4), resamples=100, seed=0)
    assert math.isfinite(few.value) and math.isnan(few.low)


def task_of(truth: np.ndarray) -> EvaluationTask:
    prompts = PromptSet("p-v1", 1, "finding", "s", tuple(PromptClass(c, c.lower(), (c,)) for c in CODES))
    return EvaluationTask(prompts, np.arange(N), truth, np.array([f"p{i // 2}" for i in range(N)]), {})


def scored(left: float, seed: int = 0) -> Scored:
    """An encoder of which `left` of what the whole says is there under random masks, and half of that under others."""
    truth, whole, blank, lone = material(seed)

    def shown(share: float, draws: int) -> np.ndarray:
        return np.stack([blank + share * (whole - blank)] * draws)

    evidence = shown(left / 4, 1)
    evidence[:, ~lone] = np.nan
    by_class = np.full((1, N, C), np.nan, dtype=np.float32)
    by_class[:, :, 1:3] = whole[:, 1:3]
    masks = (
        MaskedScores("leads", "random", 12, 6, shown(left, D)),
        MaskedScores("leads", "adversarial", 12, 6, shown(left / 2, 1)),
        MaskedScores("leads", "evidence", 12, 0, evidence),
        MaskedScores("leads", "random as evidence", 12, 0, shown(left, D)),
    )
    other = MaskedScores("leads", "random as evidence", 12, 0, np.repeat(by_class, D, axis=0))
    return Scored(task_of(truth), whole, blank, masks, (MaskedScores("leads", "evidence", 12, 0, by_class), other), 1.0)


def test_what_is_left_gaps_and_comparison_are_read_off_an_encoder_that_keeps_a_known_share() -> None:
    found = result_of([scored(0.8)], resamples=30, seed=0)
    by_name = {c.mask: c for c in found.conditions}
    for mask, expected in (("random", 0.8), ("adversarial", 0.4), ("evidence", 0.2), ("random as evidence", 0.8)):
        assert by_name[mask].cmrs.value == pytest.approx(expected, abs=1e-5)
    assert by_name["evidence"].records < by_name["random"].records == round(found.covered * N)
    assert found.gaps["leads"]["cmrs"].value == pytest.approx(0.4, abs=1e-5)
    assert found.gaps["the evidence"]["cmrs"].value == pytest.approx(0.6, abs=1e-5)
    assert by_name["evidence"].loss.value == 0, "by class nothing was lost"
    assert found.evidence_classes == ["RBBB", "ISTE"]
    lines = found.table().splitlines()
    assert any("adversarial" in line and "6 of 12" in line and "0.400" in line for line in lines)
    few = found.to_dict()["patients_of_the_rarest_class"]
    task = found.figures[0].whole
    assert few == min(task.having.min(), task.lacking.min())
    assert any(f"by {few} of the patients" in line for line in lines) == (few < 5)
    worse = result_of([scored(0.5)], resamples=30, seed=0)
    compared = {each["mask"]: each for each in compare(found, worse, resamples=30, seed=0)}
    assert compared["random"]["cmrs"]["value"] == pytest.approx(0.3, abs=1e-5)
    assert compared["random"]["cmrs"]["low"] == pytest.approx(0.3, abs=1e-5), "the same of every record"
    assert "CMRS +0.300" in "\n".join(comparison_lines(list(compared.values())))
    turned = replace(scored(0.5), by_record=scored(0.5).by_record[::-1])
    with pytest.raises(ValueError, match="masks"):
        compare(found, result_of([turned], resamples=20, seed=0), resamples=20, seed=0)


def test_the_figure_of_several_seeds_is_the_mean_of_each_record() -> None:
    found = result_of([scored(0.8), scored(0.4)], resamples=20, seed=0)
    assert found.conditions[0].cmrs.value == pytest.approx(0.6, abs=1e-5)


def test_records_without_two_sides_are_not_drawn_and_a_draw_keeps_the_order() -> None:
    truth = material()[0]
    truth[3], truth[5] = False, True
    task = drawn_records(task_of(truth), 20, 0)
    assert len(task.rows) == 20 and (np.diff(task.rows) > 0).all() and not {3, 5} & set(task.rows.tolist())
    assert np.array_equal(task.truth, truth[task.rows])
    with pytest.raises(UserError, match="no record has a class of p-v1 and lacks another"):
        drawn_records(task_of(np.ones((N, C), dtype=bool)), 20, 0)


def test_a_lead_without_any_recorded_sample_left_is_a_missing_lead_and_other_gaps_are_flat() -> None:
    signal, leads = np.ones((2, 12, 10), dtype=np.float32), np.ones((2, 12), dtype=bool)
    missing = np.zeros((2, 12, 10), dtype=bool)
    missing[0, 3, 2:5], missing[0, 7], missing[1, 2, :6] = True, True, True
    shown, mask = without(signal, leads, np.array([10, 6]), missing)
    assert np.flatnonzero(~mask[0]).tolist() == [7] and np.flatnonzero(~mask[1]).tolist() == [2]
    assert (shown[missing] == 0).all() and (shown[~missing] == 1).all() and (signal == 1).all()
