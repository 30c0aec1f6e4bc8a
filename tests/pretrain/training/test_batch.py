"""Lead dropout depends on seed, step and row, never on the topology."""

import numpy as np

from cardialign.data_shards.order.contract import local_slice
from cardialign.pretrain.training.batch import dropped_leads

GLOBAL = 11


def whole(step=4, seed=2, probability=0.5, mask=None):
    mask = np.ones((GLOBAL, 12), bool) if mask is None else mask
    return dropped_leads(mask, probability, seed, step, slice(0, GLOBAL), GLOBAL)


def test_every_world_size_hides_the_same_leads():
    for world in (1, 2, 3, 11):
        slices = [local_slice(GLOBAL, rank, world) for rank in range(world)]
        parts = [dropped_leads(np.ones((s.stop - s.start, 12), bool), 0.5, 2, 4, s, GLOBAL) for s in slices]
        assert np.array_equal(np.concatenate(parts), whole())


def test_steps_and_seeds_differ():
    assert not np.array_equal(whole(), whole(step=5))
    assert not np.array_equal(whole(), whole(seed=3))


def test_a_missing_lead_stays_missing_and_one_present_lead_stays():
    mask = np.ones((GLOBAL, 12), bool)
    mask[:, 3:] = False
    mask[0] = False
    kept = whole(probability=1.0, mask=mask)
    assert (kept.sum(axis=1)[1:] == 1).all() and not kept[0].any()
    assert not kept[:, 3:].any()


def test_the_share_is_the_probability_and_zero_changes_nothing():
    mask = np.ones((4000, 12), bool)
    kept = dropped_leads(mask, 0.25, 0, 0, slice(0, 4000), 4000)
    assert abs(kept.mean() - 0.75) < 0.01
    assert dropped_leads(mask, 0.0, 0, 0, slice(0, 4000), 4000) is mask
