"""A copy for another world size is compared with the verified checkpoint before a rank reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cardialign.data_shards.files import facts_below
from cardialign.pretrain.training.checkpoints.convert import _differs
from cardialign.pretrain.training.checkpoints.load import ResumePoint, _not_as_converted
from cardialign.pretrain.training.checkpoints.state import TrainerState
from tests.support.checkpoints import flip

WEIGHTS = {"ecg.weight": torch.arange(6.0).reshape(2, 3), "ecg.bias": torch.ones(2), "queue": torch.zeros(4)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """As DeepSpeed writes it: a folder for every trained parameter; buffers have none."""
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for name in ("ecg.weight", "ecg.bias"):
        folder = tmp_path / "engine" / "zero" / name
        folder.mkdir(parents=True)
        torch.save({"param": WEIGHTS[name].flatten(), "cat_dim": 0}, folder / "fp32.pt")
        for part in ("exp_avg", "exp_avg_sq"):
            torch.save({"param": torch.full((WEIGHTS[name].numel(),), 0.5)}, folder / f"{part}.pt")
    return tmp_path


def differs(copy: Path) -> str | None:
    return _differs(copy / "engine", copy / "model.safetensors")


def test_a_whole_copy_passes(copy):
    assert differs(copy) is None


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("fp32", torch.tensor([1.0, 1.0000001]), "ecg.bias differs from the weights"),
        ("fp32", torch.ones(3), "ecg.bias/fp32.pt is not whole"),
        ("exp_avg", torch.ones(1), "ecg.bias/exp_avg.pt is not whole"),
        ("exp_avg_sq", torch.tensor([1.0, float("nan")]), "ecg.bias/exp_avg_sq.pt is not whole"),
    ],
)
def test_another_value_shape_or_nan_is_named(copy, name, values, said):
    torch.save({"param": values}, copy / "engine" / "zero" / "ecg.bias" / f"{name}.pt")
    assert said in str(differs(copy))


def test_a_missing_cut_or_foreign_tensor_is_named(copy):
    path = copy / "engine" / "zero" / "ecg.bias" / "exp_avg.pt"
    path.write_bytes(path.read_bytes()[:100])
    assert "ecg.bias/exp_avg.pt is not whole" in str(differs(copy))
    path.unlink()
    assert "ecg.bias/exp_avg.pt is not whole" in str(differs(copy))
    (copy / "engine" / "zero" / "core").mkdir()
    assert "ecg.bias" in str(differs(copy)) or "core" in str(differs(copy))
    assert _differs(copy / "absent", copy / "model.safetensors") == "the copy is empty"


def test_what_changes_between_conversion_and_reading_is_found_by_the_rank_that_reads(copy):
    state = TrainerState(1, "", {}, "", 2, 1)
    point = ResumePoint(copy, state, ((0, 1),), copy / "engine", facts_below(copy / "engine"))
    assert _not_as_converted(point) is None
    flip(copy / "engine" / "zero" / "ecg.bias" / "exp_avg.pt")
    assert _not_as_converted(point) == "zero/ecg.bias/exp_avg.pt: content"
