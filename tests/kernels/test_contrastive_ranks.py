"""Over any number of ranks and any split the loss and its gradients are those of one process in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from kernels.contrastive import NegativeWeights, Similarity, weighted_infonce
from kernels.contrastive_reference import reference_infonce
from tests.processes import RankError, run_ranks

pytestmark = pytest.mark.processes
WIDTH, FEATURES, CHUNK = 17, 9, 7


def global_batch(batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ecg = F.normalize(torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64), dim=1)
    text = F.normalize(ecg + 0.4 * torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64), dim=1)
    cluster = torch.randint(0, 5, (batch,), generator=generator)
    centres = torch.randn(5, FEATURES, generator=generator, dtype=torch.float64)
    features = F.normalize(centres[cluster] + 0.6 * torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64), dim=1)
    key = torch.randint(-1, batch // 2 + 1, (batch,), generator=generator)
    return ecg.to(dtype), text.to(dtype), features.to(dtype), key, torch.tensor([math.log(1 / 0.07)], dtype=torch.float64)


def loss_of_shard(
    rank: int, world: int, sizes: list[int], dtype: torch.dtype, factor: float, weights: NegativeWeights
) -> dict[str, torch.Tensor]:
    ecg, text, features, key, log_scale = global_batch(sum(sizes), dtype)
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    local_ecg, local_text = ecg[mine].clone().requires_grad_(), text[mine].clone().requires_grad_()
    log_scale.requires_grad_()
    similarity = Similarity("cosine", features[mine].clone(), key[mine].clone())
    result = weighted_infonce(local_ecg, local_text, log_scale, similarity, weights, chunk=CHUNK)
    (result.loss * factor).backward()
    grads = {"ecg": local_ecg.grad, "text": local_text.grad, "log_scale": log_scale.grad}
    return {
        "loss": result.loss.detach(),
        "effective": result.effective_negatives,
        **{f"d_{name}": value / factor for name, value in grads.items() if value is not None},
    }


def relative(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("form", ["ramp", "exponential"])
@pytest.mark.parametrize(
    ("sizes", "dtype", "tolerance"),
    [
        ([40], torch.float64, 1e-12),
        ([13, 27], torch.float64, 1e-12),
        ([20, 1, 19], torch.float32, 2e-6),
        ([5, 0, 24, 11], torch.float64, 1e-12),
        ([10, 10, 3, 17], torch.bfloat16, 1e-2),
    ],
    ids=["1-rank", "2-ranks", "3-ranks-fp32", "4-ranks-one-empty", "4-ranks-bf16"],
)
def test_every_rank_gets_the_loss_and_gradients_of_the_global_batch(
    sizes: list[int], dtype: torch.dtype, tolerance: float, form: str
) -> None:
    weights = NegativeWeights(form, low=0.2, high=0.8)  # type: ignore[arg-type]
    ecg, text, features, key, log_scale = global_batch(sum(sizes), dtype)
    truth_ecg, truth_text = ecg.double().requires_grad_(), text.double().requires_grad_()
    log_scale.requires_grad_()
    loss, effective = reference_infonce(truth_ecg, truth_text, log_scale, Similarity("cosine", features.double(), key), weights)
    loss.backward()
    assert truth_ecg.grad is not None and truth_text.grad is not None and log_scale.grad is not None

    ranks = run_ranks(len(sizes), loss_of_shard, sizes, dtype, 3.0, weights)

    for result in ranks:
        assert relative(result["loss"], loss.detach()) < tolerance
        assert relative(result["d_log_scale"], log_scale.grad) < tolerance
        assert relative(result["effective"], effective) < 1e-6
        assert torch.equal(result["loss"], ranks[0]["loss"])
    assert relative(torch.cat([result["d_ecg"] for result in ranks]), truth_ecg.grad) < tolerance
    assert relative(torch.cat([result["d_text"] for result in ranks]), truth_text.grad) < tolerance


def loss_with_rank_dependent_width(rank: int, world: int) -> None:
    width = 4 if rank == 1 else 8
    pair = F.normalize(torch.ones(2, width), dim=1)
    weighted_infonce(pair, pair, torch.zeros(1), Similarity(), NegativeWeights())


def test_ranks_with_different_widths_are_told_so_instead_of_hanging() -> None:
    with pytest.raises(RankError, match=r"ranks disagree about the embedding width: \{0: 8, 1: 4\}"):
        run_ranks(2, loss_with_rank_dependent_width, deadline=30)


def loss_at_two_tile_sizes(rank: int, world: int, batch: int) -> tuple[float, float]:
    results = []
    for chunk in (batch, 5):
        ecg, text, features, key, log_scale = global_batch(batch, torch.float32)
        local = slice(rank * batch // world, (rank + 1) * batch // world)
        output = weighted_infonce(
            ecg[local], text[local], log_scale.float(), Similarity("cosine", features[local], key[local]), NegativeWeights(), chunk=chunk
        )
        results.append(float(output.loss))
    return results[0], results[1]


def test_tile_size_does_not_change_the_loss_over_ranks() -> None:
    for whole, tiled in run_ranks(2, loss_at_two_tile_sizes, 24):
        assert tiled == pytest.approx(whole, rel=1e-6)


def loss_in_a_group(rank: int, world: int) -> float:
    group = dist.new_group([0, 2])
    if rank == 1:
        return 0.0
    ecg, text, features, key, log_scale = global_batch(12, torch.float64)
    mine = slice(0, 5) if rank == 0 else slice(5, 12)
    similarity = Similarity("cosine", features[mine], key[mine])
    return float(weighted_infonce(ecg[mine], text[mine], log_scale, similarity, NegativeWeights(), group=group).loss)


def test_a_group_of_some_ranks_has_a_batch_of_its_own() -> None:
    ecg, text, features, key, log_scale = global_batch(12, torch.float64)
    expected, _ = reference_infonce(ecg, text, log_scale, Similarity("cosine", features, key), NegativeWeights())
    first, _, last = run_ranks(3, loss_in_a_group)
    assert first == last == pytest.approx(float(expected), rel=1e-12)
