"""Which leads are hidden depends on seed, step and row, never on the topology."""

from types import SimpleNamespace

import numpy as np
import torch

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.config.training import LeadMaskingConfig
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.training.batch import dropped_leads, masked_leads, step_inputs

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


def masked(rows=slice(0, 6000), mask=None, step=4, seed=2, **masking):
    mask = np.ones((rows.stop - rows.start, 12), bool) if mask is None else mask
    return masked_leads(mask, LeadMaskingConfig(**masking), Draws(seed, step, rows))


def test_of_a_share_of_the_records_0_to_most_leads_are_masked_each_number_equally_often():
    hidden = 12 - masked(share=0.6, most=11).sum(axis=1)
    counts = np.bincount(hidden, minlength=12) / len(hidden)
    expected = np.array([0.4 + 0.6 / 12, *[0.6 / 12] * 11])
    assert len(counts) == 12 and np.abs(counts - expected).max() < 5 * np.sqrt(0.45 * 0.55 / 6000)
    assert (12 - masked(share=1, most=2).sum(axis=1)).max() == 2
    each = 1 - masked(share=1, most=11).mean(axis=0)
    assert np.abs(each - 5.5 / 12).max() < 0.03, "every lead as often as another"


def test_every_world_size_masks_the_same_leads_and_steps_and_seeds_differ():
    whole = masked(slice(0, GLOBAL), share=1, most=11)
    for world in (1, 2, 3, 11):
        parts = [masked(local_slice(GLOBAL, rank, world), share=1, most=11) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, masked(slice(0, GLOBAL), step=5, share=1, most=11))
    assert not np.array_equal(whole, masked(slice(0, GLOBAL), seed=3, share=1, most=11))


def test_masking_leaves_one_lead_of_those_there_and_none_is_the_batch_itself():
    mask = np.zeros((400, 12), bool)
    mask[:, [1, 7]] = True
    mask[0] = False
    kept = masked(slice(0, 400), mask=mask, share=1, most=11)
    assert not kept[0].any() and set(kept[1:].sum(axis=1).tolist()) == {1, 2} and not (kept & ~mask).any()
    assert masked_leads(mask, None, Draws(0, 0, slice(0, 400))) is mask


def test_a_run_without_masking_is_written_down_as_before_and_one_with_it_is_read_again():
    plain = load_config("cardialign-tiny", ["data.shards=/s"])
    assert "lead_masking" not in plain.resolved()["training"] and plain.training.masked_share == 0
    masks = load_config("cardialign-tiny", ["data.shards=/s", "training.lead_masking={share: 0.25, most: 9}"])
    assert masks.resolved()["training"]["lead_masking"] == {"share": 0.25, "most": 9}
    assert parse_config(masks.resolved()) == masks and masks.training.masked_share == 0.25


def test_what_a_method_sees_is_masked_as_the_recipe_says():
    """A method that hands on the lead mask it is given."""
    rows, none = np.arange(64), np.zeros(64)
    batch = Batch(3, rows, np.zeros((64, 12, 4), np.float32), np.ones((64, 12), bool), none, none, none, none, rows)
    method = SimpleNamespace(inputs=lambda given, bank, draws: {"leads": torch.from_numpy(given.lead_mask)})
    alone = SimpleNamespace(rank=0, world_size=1, device="cpu")
    records = SimpleNamespace(report=rows, patients=rows)

    def seen(*settings: str) -> np.ndarray:
        config = load_config(
            "cardialign-demo",
            ["data.shards=/s", "training.global_batch=64", "seed=2", "training.lead_dropout=0", *settings],
        )
        return step_inputs(batch, records, None, method, config, alone)["leads"].numpy()

    assert seen().all()
    whole = masked(slice(0, 64), step=3, share=1, most=11)
    assert np.array_equal(seen("training.lead_masking={share: 1.0, most: 11}"), whole)
    both = seen("training.lead_masking={share: 1.0, most: 11}", "training.lead_dropout=0.3")
    assert both.sum() < whole.sum() and both.any(axis=1).all()


def test_every_row_says_whose_it_is_on_every_rank() -> None:
    """Rows 40 to 51 of a set in which two records follow each other per patient: a method that hands it on."""
    rows, patients = np.arange(40, 52), np.arange(100, dtype=np.int32) // 2
    method = SimpleNamespace(inputs=lambda given, bank, draws: {"patient": torch.from_numpy(given.patient)})
    records = SimpleNamespace(report=np.full(100, -1), patients=patients)
    config = load_config("simclr-tiny", ["data.shards=/s", "training.global_batch=12"])
    found = []
    for rank in (0, 1):
        own, none = rows[local_slice(12, rank, 2)], np.zeros(6)
        batch = Batch(3, own, np.zeros((6, 12, 4), np.float32), np.ones((6, 12), bool), none, none, none, none, rows)
        workers = SimpleNamespace(rank=rank, world_size=2, device="cpu")
        found += step_inputs(batch, records, None, method, config, workers)["patient"].tolist()
    assert found == [20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 25]
