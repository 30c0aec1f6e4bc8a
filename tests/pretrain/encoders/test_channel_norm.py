"""Normalisation that counts valid samples only, against PyTorch's layers on records that were cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cardialign.pretrain.encoders.blocks.channel_norm import MaskedGroupNorm, MicroBatchNorm, channel_norm
from tests.support.processes import run_ranks
from tests.support.small_encoder import small_model

B, C, T = 3, 6, 20
VALID = (20, 11, 1)


def padded(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (B, C, T) with NaN behind the valid samples, and its mask (B, 1, T)."""
    x = torch.randn(B, C, T, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    mask = (torch.arange(T) < torch.tensor(VALID)[:, None])[:, None]
    return torch.where(mask, x, torch.nan), mask


def learned(layer: nn.Module) -> nn.Module:
    """With weights that show where they are used."""
    generator = torch.Generator().manual_seed(5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator=generator)
    return layer.double()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_norm_of_a_padded_record_is_that_of_the_cut_one_in_value_and_gradient(groups: int) -> None:
    layer, (x, mask) = learned(MaskedGroupNorm(groups, C)), padded()
    x.requires_grad_()
    direction = torch.randn(B, C, T, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = layer(x, mask)
    (out * direction).sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    for i, valid in enumerate(VALID):
        cut = x.detach()[i : i + 1, :, :valid].requires_grad_()
        alone = layer(cut)
        (alone * direction[i : i + 1, :, :valid]).sum().backward()
        torch.testing.assert_close(out[i : i + 1, :, :valid], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(x.grad[i : i + 1, :, :valid], cut.grad, rtol=0, atol=1e-12)
    assert out[~mask.expand_as(out)].abs().max() == 0 == x.grad[~mask.expand_as(out)].abs().max()
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-12)


def test_group_norm_never_normalises_a_channel_by_itself() -> None:
    sizes = {channels: channel_norm("group", channels).num_groups for channels in (1, 5, 6, 8, 64, 96, 512)}
    assert sizes == {1: 1, 5: 1, 6: 1, 8: 4, 64: 32, 96: 16, 512: 32}
    assert channel_norm("layer", 64).num_groups == 1


def test_micro_batch_norm_is_the_published_layer_when_a_step_is_one_micro_batch() -> None:
    published, ours = learned(nn.BatchNorm1d(C)).train(), learned(MicroBatchNorm(C)).train()
    for seed in range(3):
        x = torch.randn(B, C, T, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        torch.testing.assert_close(ours(x), published(x), rtol=0, atol=1e-12)
        ours.after_update()
        torch.testing.assert_close(ours.running_mean, published.running_mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.running_variance, published.running_var, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), published.eval()(x), rtol=0, atol=1e-12)


def test_micro_batch_norm_counts_valid_samples_only() -> None:
    published, ours, (x, mask) = learned(nn.BatchNorm1d(C)).train(), learned(MicroBatchNorm(C)).train(), padded()
    together = torch.cat([x[i, :, :valid] for i, valid in enumerate(VALID)], dim=1)[None]
    expected, out = published(together), ours(x, mask)
    torch.testing.assert_close(out.transpose(0, 1)[mask.expand(B, C, T).transpose(0, 1)], expected.flatten())
    assert out[~mask.expand_as(out)].abs().max() == 0
    ours.after_update()
    torch.testing.assert_close(ours.running_mean, published.running_mean, rtol=0, atol=1e-12)
    assert ours.eval()(x, mask)[~mask.expand_as(x)].abs().max() == 0


def test_running_statistics_move_once_per_step_and_not_by_passes_without_a_graph() -> None:
    x = torch.randn(8, C, T, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2
    layer = MicroBatchNorm(C).double().train()
    for _ in range(2):
        with torch.no_grad():
            layer(x + 5)  # as the first pass of gradient caching, and teachers
        for part in x.split(2):
            layer(part)
        assert layer.running_mean.abs().max() == 0 or not torch.equal(layer.seen, torch.zeros_like(layer.seen))
        before = layer.running_mean.clone()
        layer.after_update()
        torch.testing.assert_close(layer.running_mean, 0.9 * before + 0.1 * x.mean(dim=(0, 2)), rtol=0, atol=1e-12)
    still = layer.running_mean.clone()
    layer.after_update()  # a step without a forward pass
    assert torch.equal(layer.running_mean, still) and not layer.seen.any()
    assert "seen" not in layer.state_dict() and "running_mean" in layer.state_dict()


def test_every_method_moves_them_after_its_update() -> None:
    encoder = {"name": "resnet1d", "width": 4, "heads": 2, "norm": "micro-batch", "embedding_dim": 8}
    _, method = small_model(encoder=encoder)
    norms = [module for module in method.modules() if isinstance(module, MicroBatchNorm)]
    method.train().ecg(torch.randn(2, 12, 200), torch.ones(2, 12, dtype=torch.bool))
    assert len(norms) == 20 and all(not norm.running_mean.any() for norm in norms)
    method.after_update(0, lambda prefix: {})
    assert all(norm.running_mean.any() for norm in norms)


def _rank_statistics(rank: int, world: int) -> list[list[float]]:
    layer = MicroBatchNorm(2).train()
    layer(torch.arange(8.0).view(2, 2, 2) + 100 * rank)
    layer.after_update()
    return [layer.running_mean.tolist(), layer.running_variance.tolist()]


@pytest.mark.processes
def test_running_statistics_are_the_same_mean_on_all_ranks() -> None:
    first, second = run_ranks(2, _rank_statistics)
    assert first == second
    assert first[0] == pytest.approx([0.1 * (2.5 + 50), 0.1 * (4.5 + 50)])
