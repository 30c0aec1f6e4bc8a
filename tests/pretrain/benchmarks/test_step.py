"""One measured step is a real step.

Its parts add up, its FLOPs are those of the model, and the CPU is spared the large recipes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.step import measure_step
from cardialign.pretrain.config import load_config

CPU = torch.device("cpu")
SPEC = SignalSpec(100, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_step_of_the_demo_recipe_is_measured() -> None:
    small, large = (
        measure_step("cardialign-demo", CPU, batch=batch, spec=SPEC, rounds=1, profile=batch == 2) for batch in (2, 4)
    )
    assert small["step_ms"] == pytest.approx(small["forward_ms"] + small["backward_ms"] + small["optimizer_ms"])
    assert small["ecg_per_s"] == pytest.approx(2 / (small["step_ms"] * 1e-3))
    assert small["share_of_gemm"] == pytest.approx(
        small["flop_per_step"] / (small["step_ms"] * 1e-3) / small["gemm_flop_s"]
    )
    assert "aten::mm" in small["profile"] and "profile" not in large
    assert "mfu" not in small  # a share of a data sheet that this device does not have
    # Twice the records are twice the FLOPs, but for the loss, whose logits are few, and for the statements asked of
    # all: 256 go once through the text head (384 -> 128 beside 384 -> 256 -> 128), forward and twice backward.
    asked = 3 * 2 * 256 * (384 * 128 + 384 * 256 + 256 * 128)
    assert large["flop_per_step"] - asked == pytest.approx(2 * (small["flop_per_step"] - asked), rel=0.01)
    config = load_config("cardialign-demo").encoder
    block = 12 * config.width**2  # multiply-adds of one token in one block: qkv 3, out 1, MLP 8 (times width^2)
    tokens = 2 * 4 * (40 + 20 + 10)
    assert small["flop_per_step"] > 3 * 2 * tokens * block


def test_a_cpu_is_spared_large_recipes_and_batches_without_negatives() -> None:
    with pytest.raises(UsageError, match="cardialign-base on a CPU takes minutes") as refused:
        measure_step("cardialign-base", CPU)
    assert "cardialign-demo" in refused.value.remedy
    with pytest.raises(UsageError, match="a batch of 1 has no negatives"):
        measure_step("cardialign-demo", CPU, batch=1)
