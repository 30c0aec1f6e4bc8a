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
from tests.support.kernels.interpreter import Run, compiled, limit_launches
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
@pytest.mark.slow
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


Errors = dict[tuple[str, str], tuple[float, float]]


def in_low_precision(dtype: torch.dtype, rows: int = 50, width: int = 24) -> Errors:
    """Error of every loss and gradient against float64, and that of the plain formula in the same type."""
    limit_launches(2 if rows < 1000 else None)
    errors = {}
    for name, member in FAMILY.items():
        batch = member.prepare(Batch.random(rows, width=width, noise=0.5 * (24 / width) ** 0.5)).to(dtype)
        truth = member.value_and_gradients(member.plain, batch.to(torch.float64))
        rough = member.value_and_gradients(member.plain, batch)
        found = member.value_and_gradients(member.tiled, batch, execution=Execution(backend="triton"))
        errors |= {(name, key): (relative(found[key], truth[key]), relative(rough[key], truth[key])) for key in truth}
    return errors


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=["bfloat16", "float16"]
)
def test_low_precision_error_of_every_loss_is_at_most_twice_that_of_the_plain_formula(
    triton_run: Run, dtype: torch.dtype, rounding: float
) -> None:
    _small(triton_run(in_low_precision, dtype), rounding)


def _small(errors: Errors, rounding: float) -> None:
    for (name, key), (ours, plain) in errors.items():
        floor = rounding if key in ("ecg", "text") else 3e-6
        assert ours <= 2 * plain + floor, (name, key, ours, plain)
        assert ours < 2 * floor + 1e-5, (name, key, ours)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@GPU
@pytest.mark.parametrize("width", [256, 512, 768])
def test_the_same_at_sizes_as_they_are_trained_with(width: int) -> None:
    _small(compiled(in_low_precision, torch.bfloat16, 3001, width), 4e-3)


def without_waiting() -> list[str]:
    """Members whose loss or gradient makes the host wait for the device: the queue of a training step would run dry."""
    limit_launches(None)
    waited = []
    for name, member in FAMILY.items():
        batch = member.prepare(Batch.random(200, width=256)).to(torch.bfloat16)
        member.value_and_gradients(member.tiled, batch, execution=Execution(backend="triton"))  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            member.value_and_gradients(member.tiled, batch, execution=Execution(backend="triton"))
        except RuntimeError as error:
            waited.append(f"{name}: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return waited


@GPU
def test_no_loss_makes_the_host_wait() -> None:
    assert compiled(without_waiting) == []


def beside_public_packages(rows: int, width: int) -> dict[str, tuple[float, ...]]:
    """Per package: the relative distance of the losses, and of the gradients of ECG and text."""
    import inf_cl
    import siglip_kernel

    limit_launches(None)
    batch = Batch.random(rows, width).to(torch.float32)
    scale = batch.log_scale.exp()

    def of_infonce(v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = inf_cl.cal_flash_loss(v, t, scale=scale) + inf_cl.cal_flash_loss(t, v, scale=scale)
        return both.mean() / 2

    def of_siglip(v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = siglip_kernel.fused_siglip_loss(v, t, batch.log_scale[0], batch.bias[0])
        return loss

    found = {}
    for name, theirs, ours in (("inf_cl", of_infonce, "infonce"), ("siglip-kernel", of_siglip, "siglip")):
        member = FAMILY[ours]
        mine = member.value_and_gradients(member.tiled, batch, execution=Execution(backend="triton"))
        leaves = [tensor.clone().requires_grad_() for tensor in (batch.ecg, batch.text)]
        loss = theirs(*leaves)
        gradients = torch.autograd.grad(loss, leaves)
        pairs = zip(("loss", "ecg", "text"), (loss.detach(), *gradients), strict=True)
        found[name] = tuple(relative(mine[key], value) for key, value in pairs)
    return found


@GPU
def test_infonce_and_siglip_are_those_of_public_packages() -> None:
    """Theirs multiply float32 as TF32, 10 bits: 2e-3 of a gradient is what that leaves."""
    pytest.importorskip("inf_cl")
    pytest.importorskip("siglip_kernel")
    for name, distances in compiled(beside_public_packages, 1024, 256).items():
        assert max(distances) < 5e-3, (name, distances)


def test_a_backend_that_cannot_run_is_refused_by_name() -> None:
    batch = Batch.random(4)
    operands = (batch.ecg, batch.text, batch.log_scale, batch.similarity(), NegativeWeights())
    with pytest.raises(ValueError, match="the Triton backend is not available on cpu; use backend 'auto' or 'torch'"):
        weighted_infonce(*operands, Execution(backend="triton"))
    automatic = weighted_infonce(*operands, Execution(backend="auto"))
    expected, _ = reference_infonce(*operands)
    assert relative(automatic.loss, expected) < 1e-12
