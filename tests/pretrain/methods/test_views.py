"""A view differs from the record in what the recipe allows, and in nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.views import ViewConfig, draw_view

B, T, RATE = 24, 500, 100.0
STILL = {"shortest": 1.0, "hidden_leads": 0.0, "scale": 1.0, "noise_mv": 0.0, "wander_mv": 0.0}


def batch() -> Batch:
    generator = np.random.default_rng(0)
    rows = np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[0, 3:] = False
    return Batch(
        step=2,
        rows=rows,
        signal=generator.normal(size=(B, 12, T)).astype(np.float32),
        lead_mask=mask,
        valid_samples=np.where(rows % 3 == 0, 311, T).astype(np.int32),
        report=rows,
        age_years=np.zeros(B, np.float32),
        sex=np.zeros(B, np.int8),
        global_rows=rows,
    )


def view(purpose: str = "v", rows: slice = slice(0, B), **values: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    whole = batch()
    part = dataclasses.replace(
        whole, **{name: getattr(whole, name)[rows] for name in ("signal", "lead_mask", "valid_samples", "rows")}
    )
    return draw_view(part, ViewConfig(**{**STILL, "scale": 1.0 + 1e-12, **values}), Draws(1, 2, rows), purpose, RATE)


def inside(valid: np.ndarray) -> np.ndarray:
    return np.broadcast_to((np.arange(T) < valid[:, None])[:, None], (B, 12, T))


def test_with_nothing_allowed_it_is_the_record_with_its_padding_silent() -> None:
    signal, mask, valid = view()
    assert np.array_equal(valid, batch().valid_samples) and np.array_equal(mask, batch().lead_mask)
    np.testing.assert_allclose(signal[inside(valid)], batch().signal[inside(valid)], rtol=1e-6)
    assert not signal[~inside(valid)].any()


def test_a_window_is_a_stretch_of_the_recorded_signal() -> None:
    signal, _, valid = view(shortest=0.4)
    original = batch()
    shares = valid / original.valid_samples
    assert shares.min() >= 0.39 and shares.max() <= 1 and np.unique(valid).size > B // 2
    starts = []
    for row in range(B):
        found = [
            start
            for start in range(original.valid_samples[row] - valid[row] + 1)
            if np.allclose(signal[row, :, : valid[row]], original.signal[row, :, start : start + valid[row]], rtol=1e-5)
        ]
        assert len(found) == 1, "nothing of the padding, nothing twice"
        starts += found
    assert len(set(starts)) > B // 3


def test_the_amplitude_changes_by_one_factor_per_record_within_the_bounds() -> None:
    signal, _, valid = view(scale=1.5)
    ratio = np.where(inside(valid), signal, 1) / np.where(inside(valid), batch().signal, 1)
    factors = ratio[:, 0, 0]
    assert np.allclose(np.where(inside(valid), ratio, factors[:, None, None]), factors[:, None, None], rtol=1e-4)
    assert 1 / 1.5 <= factors.min() < 0.95 and 1.05 < factors.max() <= 1.5


def test_noise_is_white_and_wander_is_slow() -> None:
    signal, _, valid = view(noise_mv=0.2)
    noise = np.where(inside(valid), signal - batch().signal, 0)
    deviations = noise[1].std(), noise[2].std()
    assert all(0 < d <= 0.21 for d in deviations) and deviations[0] != deviations[1]
    steps = noise[2, 0, :300]
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.2
    wander = np.where(inside(valid), view(wander_mv=0.3)[0] - batch().signal, 0)[1]
    assert 0 < np.abs(wander).max() <= 0.3001
    assert np.abs(np.diff(wander, axis=1)).max() < 2 * np.pi * 0.5 / RATE * 0.3 + 1e-5, "at most 0.5 Hz"


def test_hidden_leads_are_drawn_by_chance_and_one_always_stays() -> None:
    _, mask, _ = view(hidden_leads=0.5)
    given = batch().lead_mask
    assert not (mask & ~given).any() and 0.3 < mask[1:].mean() < 0.7
    _, alone, _ = view(hidden_leads=1.0)
    assert (alone.sum(axis=1) == 1).all() and not (alone & ~given).any()


def test_views_belong_to_the_row_and_to_their_purpose() -> None:
    values = {"shortest": 0.5, "hidden_leads": 0.3, "scale": 1.3, "noise_mv": 0.1, "wander_mv": 0.1}
    whole = view(**values)
    for world in (2, 3):
        parts = [view(rows=local_slice(B, rank, world), **values) for rank in range(world)]
        for name, joined in enumerate(zip(*parts, strict=True)):
            assert np.array_equal(np.concatenate(joined), whole[name])
    assert not np.array_equal(view("w", **values)[0], whole[0])
    before = batch().signal
    assert np.array_equal(batch().signal, before), "the batch stays as it is"


def test_views_that_change_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="every view is the record itself; set at least one of"):
        parse_config({"method": {"name": "simclr", "views": STILL}})


def test_a_rolled_view_goes_on_from_the_beginning_where_it_ends_and_loses_nothing() -> None:
    signal, _, valid = view(roll=True)
    original, starts = batch(), set()
    assert np.array_equal(valid, original.valid_samples)
    for row in range(B):
        whole = original.signal[row, :, : valid[row]]
        shift = next(
            k for k in range(valid[row]) if np.allclose(np.roll(whole, -k, axis=1), signal[row, :, : valid[row]])
        )
        starts.add(shift)
        assert not signal[row, :, valid[row] :].any()
    assert len(starts) > B // 2
