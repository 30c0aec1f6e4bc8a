"""Whoever computes the tiles and however columns travel, the loss is the same.

The Triton tiles through the public functions, interpreted.
"""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.kernels.contrastive.plan import choose_blocks
from cardialign.kernels.contrastive.reference import reference_infonce
from cardialign.kernels.contrastive.triton.backend import TRITON
from tests.support.kernels.interpreter import interpreted, limit_launches
from tests.support.kernels.loss_family import FAMILY, Batch, relative
from tests.support.processes import run_ranks

SIZES = (21, 0, 9)
LOSSES = (
    "infonce",
    "weighted-ramp",
    "weighted-exponential",
    "soft-ramp",
    "siglip-soft",
    "ets",
    "false-negative-mitigation",
)


def through_triton(rank: int, world: int) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    assert choose_blocks("triton", torch.device("cpu"), 1) is TRITON
    rows = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    batch = Batch.random(sum(SIZES)).to(torch.float32)
    part = batch.rows(rows)
    found = {}
    for scheme in ("gather", "ring"):
        execution = Execution(scheme=scheme, backend="triton")  # type: ignore[arg-type]
        for name in LOSSES:
            member = FAMILY[name]
            mine = member.prepare(batch).rows(rows)
            found[name, scheme] = member.value_and_gradients(member.tiled, mine, execution=execution)
        operands = (
            part.ecg,
            part.text,
            part.log_scale,
            Similarity("none", None, part.key),
            NegativeWeights("none", drop_duplicates=False),
        )
        output = weighted_infonce(*operands, execution)
        found["negatives", scheme] = {"effective": output.effective_negatives}
    return found


@pytest.mark.processes
def test_triton_tiles_serve_every_scheme() -> None:
    ranks = run_ranks(len(SIZES), through_triton, environment={"TRITON_INTERPRET": "1"}, fresh=True)
    batch = Batch.random(sum(SIZES)).to(torch.float32).to(torch.float64)
    for name, scheme in ranks[0]:
        results = [rank[name, scheme] for rank in ranks]
        if name == "negatives":
            assert all(float(result["effective"]) == sum(SIZES) - 1 for result in results)
            continue
        member = FAMILY[name]
        truth = member.value_and_gradients(member.plain, member.prepare(batch))
        for key, expected in truth.items():
            found = torch.cat([result[key] for result in results]) if key in ("ecg", "text") else results[0][key]
            assert relative(found, expected) < 5e-6, (name, scheme, key)


def in_low_precision(dtype: torch.dtype) -> dict[tuple[str, str], tuple[float, float]]:
    """Error of every loss and gradient against float64, and that of the plain formula in the same type."""
    limit_launches(2)
    errors = {}
    for name, member in FAMILY.items():
        batch = member.prepare(Batch.random(50, width=24, noise=0.5)).to(dtype)
        truth = member.value_and_gradients(member.plain, batch.to(torch.float64))
        rough = member.value_and_gradients(member.plain, batch)
        found = member.value_and_gradients(member.tiled, batch, execution=Execution(backend="triton"))
        errors |= {(name, key): (relative(found[key], truth[key]), relative(rough[key], truth[key])) for key in truth}
    return errors


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=["bfloat16", "float16"]
)
def test_low_precision_error_of_every_loss_is_at_most_twice_that_of_the_plain_formula(
    dtype: torch.dtype, rounding: float
) -> None:
    for (name, key), (ours, plain) in interpreted(in_low_precision, dtype).items():
        floor = rounding if key in ("ecg", "text") else 3e-6
        assert ours <= 2 * plain + floor, (name, key, ours, plain)
        assert ours < 2 * floor + 1e-5, (name, key, ours)


def test_a_backend_that_cannot_run_is_refused_by_name() -> None:
    batch = Batch.random(4)
    operands = (batch.ecg, batch.text, batch.log_scale, batch.similarity(), NegativeWeights())
    with pytest.raises(ValueError, match="the Triton backend is not available on cpu; use backend 'auto' or 'torch'"):
        weighted_infonce(*operands, Execution(backend="triton"))
    automatic = weighted_infonce(*operands, Execution(backend="auto"))
    expected, _ = reference_infonce(*operands)
    assert relative(automatic.loss, expected) < 1e-12
