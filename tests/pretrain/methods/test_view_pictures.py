"""The views that are drawn are those that training sees, and the words below say what was done, with units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal.side_by_side import Panel, draw_side_by_side
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts import view_pictures
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.view_pictures import panels_of_views, view_words
from cardialign.pretrain.methods.parts.views import viewed
from tests.support.small_encoder import SPEC, small_config

VIEWS = {"shortest": 0.5, "roll": True, "resize": True, "mains_mv": 0.1, "hidden_time": 0.3, "pieces": 4}


def record_of(valid: int = 180) -> EcgRecord:
    counts = np.random.default_rng(0).integers(-500, 500, (12, 200)).astype(np.int16)
    counts[:, valid:], mask = 0, np.ones(12, dtype=bool)
    mask[2] = False
    return EcgRecord(
        "tiny-1", counts, np.full(12, 500.0, dtype=np.float32), 100.0, lead_mask=mask, valid_samples=valid, age_years=54
    )


def test_the_views_are_those_of_training() -> None:
    config = small_config(method={"name": "simclr", "views": VIEWS})
    record = record_of()
    rows = panels_of_views(config, record, SPEC)
    assert [panel.title for row in rows for panel in row[1:]] == [
        f"Step {step}, {view} view" for step in (0, 1) for view in ("first", "second")
    ]
    assert rows[0][0].record is record and rows[1][0].record is None
    assert "mains_mv 0.1" in rows[1][0].lines[0] and "pieces 4" in rows[1][0].lines[1]
    method = create_method(config, SPEC)
    for step, row in enumerate(rows):
        batch = view_pictures._batch_of(record, step)
        inputs = method.inputs(batch, None, Draws(config.seed, step, slice(0, 1)))
        for view, panel in zip(("first", "second"), row[1:], strict=True):
            signal, leads, valid = viewed(inputs["signal"], inputs, view)
            assert panel.record is not None
            np.testing.assert_allclose(panel.record.millivolts(), signal[0].numpy(), atol=0.51e-3)
            assert np.array_equal(panel.record.lead_mask, leads[0].numpy()) and panel.record.valid_samples == valid[0]
    assert not np.array_equal(*(row[1].record.counts for row in rows if row[1].record is not None))


def test_words_are_what_was_drawn_in_seconds_millivolts_and_hertz() -> None:
    """100 Hz, a record of 1.8 s: samples and cycles per sample by hand."""
    leads = torch.ones(1, 12, dtype=torch.bool)
    leads[0, [2, 4, 6]] = False  # lead III (2) was not recorded
    wander = torch.zeros(1, 3, 12)
    wander[0, 0, 0], wander[0, 0, 4], wander[0, 1] = 0.05, 0.9, 0.002
    drawn = {
        "leads": leads,
        "start": torch.tensor([20]),
        "length": torch.tensor([180]),
        "window": torch.tensor([90]),
        "ahead": torch.tensor([45]),
        "scale": torch.tensor([1.125]),
        "wander": wander,
        "hum": torch.tensor([[0.5, 0.1] + [0.02] * 12]),
        "noise": torch.tensor([0.0123]),
        "flat": torch.tensor([[30, 60]]),
        "pieces": torch.tensor([[[0, 50, 120, 180], [130, 0, 60, 180]]]),  # the last is empty
    }
    assert view_words({f"first {name}": each for name, each in drawn.items()}, "first", record_of()) == [
        "scale 1.12",
        "0.20 to 1.10 s of the record, stretched to 1.80 s: 2.00 times slower",
        "begins 0.45 s later, and goes on from the beginning",
        "cut into 3, in the order 3 1 2",
        "wander up to 0.05 mV, 0.20 to 0.20 Hz, each lead its own",
        "hum 50 Hz, up to 0.020 mV",
        "noise 0.012 mV (standard deviation)",
        "flat from 0.30 to 0.90 s",
        "leads hidden: aVL, V1",
    ]
    still = {"leads": torch.ones(1, 12, dtype=torch.bool), "start": torch.tensor([0]), "length": torch.tensor([180]),
             "ahead": torch.tensor([0]), "scale": torch.tensor([1.0]), "hum": torch.tensor([[0.6, 0.0] + [0.0] * 12]),
             "flat": torch.tensor([[3, 0]]), "pieces": torch.tensor([[[0, 180], [0, 180]]])}  # fmt: skip
    assert view_words({f"second {name}": each for name, each in still.items()}, "second", record_of()) == [
        "scale 1.00", "the whole record", "not cut", "no hum: 100 Hz cannot hold 60 Hz", "leads hidden: none",
    ]  # fmt: skip


def test_a_recipe_without_views_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="recipe small: its method siglip makes no two views") as caught:
        panels_of_views(small_config(method={"name": "siglip"}), record_of(), SPEC)
    assert "byol" in caught.value.remedy and "simclr" in caught.value.remedy and "st_mem" not in caught.value.remedy


def test_panels_stand_in_rows_at_one_scale(tmp_path: Path) -> None:
    one = Panel(record_of(), "The record itself", ["1.8 s at 100 Hz"])
    drawn = draw_side_by_side([[one, one], [Panel(None, "Words", ["alone"])]], tmp_path / "a.png", dpi=40)
    pixels = image.imread(drawn)[..., :3]
    margin, width = round(5 / 25.4 * 40), round(270 / 25.4 * 40)
    assert abs(pixels.shape[1] - (2 * width + 3 * margin)) <= 2
    first, second = pixels[:, margin : margin + width - 1], pixels[:, width + 2 * margin : 2 * (width + margin) - 1]
    assert np.abs(first - second)[: pixels.shape[0] // 2].max() < 0.01, "the same record, the same drawing"
    assert (second[-3 * margin :] == 1).all() and (first[-3 * margin :] < 1).any(), "words below on the left alone"
    with pytest.raises(DataError):
        draw_side_by_side([[one]], tmp_path / "none" / "a.png", dpi=40)
