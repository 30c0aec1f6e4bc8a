"""A view differs from the record in what the recipe allows, and in nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.parts.device_draws import white_noise
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.views import ViewConfig, ViewsConfig, draw_view, view_draws, viewed

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


def on_device(purpose: str = "v", rows: slice = slice(0, B), **values: float) -> tuple[np.ndarray, ...]:
    """The same as `view`, made of drawn numbers; 500 Hz, so that hum has a place."""
    whole = batch()
    part = dataclasses.replace(
        whole, **{name: getattr(whole, name)[rows] for name in ("signal", "lead_mask", "valid_samples", "rows")}
    )
    config = ViewsConfig(**{**STILL, "scale": 1.0 + 1e-12, **values})
    drawn = view_draws(part, config, Draws(1, 2, rows), purpose, 500.0)
    return tuple(each.numpy() for each in viewed(torch.from_numpy(part.signal), drawn, purpose))


def test_views_made_on_the_device_are_those_made_beside_it() -> None:
    values = {"shortest": 0.5, "hidden_leads": 0.3, "scale": 1.3, "roll": True}
    for here, there in zip(view(**values), on_device(**values), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-6)


def test_views_on_the_device_belong_to_the_row_and_to_their_purpose() -> None:
    values = {"shortest": 0.5, "noise_mv": 0.1, "wander_mv": 0.1, "mains_mv": 0.1, "hidden_time": 0.5, "pieces": 5}
    whole = on_device(**values)
    for world in (2, 3, B):
        parts = [on_device(rows=local_slice(B, rank, world), **values) for rank in range(world)]
        assert all(np.array_equal(np.concatenate(p), w) for p, w in zip(zip(*parts, strict=True), whole, strict=True))
    assert not np.array_equal(on_device("w", **values)[0], whole[0])


def test_pieces_change_places_and_nothing_is_lost_or_said_twice() -> None:
    signal, _, valid = on_device(pieces=4)
    original, changed = batch(), 0
    for row in range(B):
        ours, theirs = signal[row, 0, : valid[row]], original.signal[row, 0, : valid[row]]
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-6)
        seams = int((np.diff([np.abs(theirs - value).argmin() for value in ours]) != 1).sum())
        assert seams <= 3
        changed += seams > 0
        assert not signal[row, :, valid[row] :].any()
    assert changed > B // 3


def test_a_resized_window_fills_the_record_and_keeps_its_ends() -> None:
    signal, _, valid = on_device(shortest=0.4, resize=True)
    original = batch()
    assert np.array_equal(valid, original.valid_samples)
    config = ViewsConfig(**{**STILL, "shortest": 0.4, "resize": True})
    drawn = view_draws(original, config, Draws(1, 2, slice(0, B)), "v", 500.0)
    for row in range(B):
        first, window = int(drawn["v start"][row]), int(drawn["v window"][row])
        asked = np.linspace(0, window - 1, valid[row])
        by_hand = np.interp(asked, np.arange(window), original.signal[row, 3, first : first + window])
        np.testing.assert_allclose(signal[row, 3, : valid[row]], by_hand, atol=1e-5)


def test_hum_is_a_sine_of_the_mains_and_flat_time_is_flat_in_all_leads() -> None:
    added = (on_device(mains_mv=0.3)[0] - batch().signal)[:, :, :300]
    strongest = np.abs(np.fft.rfft(added[1:], axis=-1)).argmax(axis=-1) * 500 / 300
    assert set(strongest.ravel().round().astype(int)) == {50, 60} and 0.2 < np.abs(added).max() <= 0.3001
    signal, _, valid = on_device(hidden_time=0.5)
    for row in range(B):
        flat = ~signal[row, :, : valid[row]].any(axis=0)
        assert flat.mean() <= 0.5 and (np.diff(np.nonzero(flat)[0]) == 1).all()
    assert any((~signal[row, :, :311].any(axis=0)).mean() > 0.3 for row in range(B))


def test_noise_on_the_device_is_white_normal_and_its_own_in_every_row_and_lead() -> None:
    noise = white_noise(torch.arange(4, dtype=torch.int64), 12, 5000).numpy()
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01 and abs((noise**4).mean() - 3) < 0.1
    flat = noise.reshape(48, 5000)
    apart = np.corrcoef(flat) - np.eye(48)
    assert np.abs(apart).max() < 0.08 and abs(np.corrcoef(flat[:, 1:].ravel(), flat[:, :-1].ravel())[0, 1]) < 0.01
