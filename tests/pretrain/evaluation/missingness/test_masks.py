"""Masks have exactly their budget, units cover the record once, and a search finds what a record hangs on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.evaluation.missingness.masks import (
    KINDS,
    lead_units,
    mean_by_unit,
    random_units,
    recorded_samples,
    units_of,
)
from cardialign.pretrain.evaluation.missingness.search import worst_units
from cardialign.pretrain.export.loaded import untrained_encoder
from tests.support.small_encoder import SPEC as SMALL
from tests.support.small_encoder import small_config
from tests.support.small_scar import ENCODER

SPEC = SignalSpec(50, 7.3)  # 365 samples: no whole number of units of time


@pytest.mark.parametrize("kind", KINDS)
def test_units_cover_every_sample_once_and_a_budget_is_exact(kind: str) -> None:
    units = units_of(kind, SPEC)
    each = units.mask(np.eye(len(units), dtype=bool))
    assert each.shape == (len(units), 12, 365) and (each.sum(axis=0) == 1).all()
    assert len(units) == {"leads": 12, "time": 14, "cells": 36}[kind]
    for share in (0.01, 0.25, 0.5, 0.99):
        budget = units.budget(share)
        assert budget == min(max(1, int(share * len(units) + 0.5)), len(units) - 1)
        chosen = np.stack([random_units(units, budget, 3, row) for row in range(50)])
        assert (chosen.sum(axis=1) == budget).all() and len(np.unique(chosen, axis=0)) > 1
        assert not units.mask(chosen).all(axis=(1, 2)).any(), "something is always left"
    assert np.array_equal(random_units(units, 3, 3, 7), random_units(units, 3, 3, 7))
    assert not np.array_equal(random_units(units, 3, 3, 7, 0), random_units(units, 3, 3, 7, 1))


def test_every_unit_is_drawn_as_often() -> None:
    units = units_of("leads", SPEC)
    share = np.mean([random_units(units, 4, 0, row) for row in range(3000)], axis=0)
    assert np.abs(share - 1 / 3).max() < 0.04


def test_kinds_that_are_not_there_and_records_without_time_to_miss_are_refused() -> None:
    with pytest.raises(UsageError, match="leads, time, cells"):
        units_of("beats", SPEC)
    with pytest.raises(UsageError, match="leave out the kind `time`"):
        units_of("time", SignalSpec(100, 0.7))


def score_of(weights: np.ndarray, pair: float = 0.0):
    """Delta of a record that hangs on each lead by its weight, and on I and II together by `pair`."""

    def score(missing: np.ndarray) -> np.ndarray:
        left = ~missing.all(axis=2)
        return left @ weights + pair * (left[:, 0] | left[:, 1])

    return score


def test_occlusion_takes_the_units_that_a_record_hangs_on() -> None:
    weights = np.array([0.1, 0.9, 0.2, 0.8, 0.0, 0.3, 0.7, 0.0, 0.1, 0.0, 0.6, -0.5])
    worst = worst_units(units_of("leads", SPEC), 4, score_of(weights))
    assert [STANDARD_LEADS[k] for k in np.flatnonzero(worst)] == ["II", "aVR", "V1", "V5"]


@pytest.mark.parametrize("rounds", [1, 2, 3, 9])
def test_rounds_keep_the_budget_and_more_of_them_see_what_leads_share(rounds: int) -> None:
    """I and II stand in for one another: alone neither hurts, and greedy search takes both once one is gone."""
    weights = np.full(12, 0.1)
    weights[0] = 0.2
    units = units_of("leads", SPEC)
    worst = worst_units(units, 3, score_of(weights, pair=5.0), rounds)
    assert worst.sum() == 3
    assert bool(worst[0] and worst[1]) == (rounds >= 2 or worst[1])


def test_leads_by_name() -> None:
    assert np.flatnonzero(lead_units(("V1", "V2"))).tolist() == [6, 7] and not lead_units(()).any()


def test_an_encoder_with_patches_of_leads_leaves_gaps_out_and_others_see_a_flat_line() -> None:
    """A gap between tokens that are kept: the one does not read what stands there, the other reads zeros."""
    signal = np.random.default_rng(0).normal(size=(2, 12, 200)).astype(np.float32)
    leads, valid = np.ones((2, 12), dtype=bool), np.full(2, 200)
    missing = np.zeros((2, 12, 200), dtype=bool)
    missing[:, 4, 40:80] = True
    flat, other = signal.copy(), signal.copy()
    flat[missing], other[missing] = 0.0, 9.0
    for config, leaves_out in ((small_config(encoder=ENCODER), True), (small_config(), False)):
        encoder = untrained_encoder(config, SMALL, with_reports=False)
        assert encoder.leaves_out is leaves_out
        read = encoder.gap_reader(SMALL)
        gone = read(signal, leads, valid, missing).embedding
        assert torch.equal(gone, read(other, leads, valid, missing).embedding)
        apart = (gone - encoder.reader(SMALL)(flat, leads, valid).embedding).abs().max()
        assert (apart > 1e-4) if leaves_out else (apart == 0)


def test_of_a_record_in_part_only_what_was_recorded_is_missed() -> None:
    """Four leads, 3.2 of 7.3 s: units elsewhere hold nothing, and a unit is judged by what it holds."""
    lead_mask = np.arange(12) < 4
    there = recorded_samples(lead_mask, 160, SPEC.samples)
    assert there.sum() == 4 * 160 and not there[4:].any() and not there[:, 160:].any()
    sizes = {kind: len(units_of(kind, SPEC).recorded(there)) for kind in KINDS}
    assert sizes == {"leads": 4, "time": 7, "cells": 8}, "of cells of 2 s the second is there in part"
    whole = np.ones_like(there)
    for kind in KINDS:
        units = units_of(kind, SPEC)
        assert units.recorded(whole) is units, "every figure of whole records stays as it was"
        assert units.recorded(~whole) is units
        chosen = random_units(units.recorded(there), units.recorded(there).budget(0.5), 0, 1)
        assert (units.recorded(there).mask(chosen) & there).any()
    gladly = np.where(there, np.arange(12.0)[:, None], -1e9).astype(np.float32)
    means = mean_by_unit(gladly, units_of("leads", SPEC), there)
    assert np.array_equal(means[:4], [0, 1, 2, 3]) and np.isneginf(means[4:]).all()
