"""A step that is counted without computing it, against PyTorch's own hooks, counters, and arithmetic on paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.benchmarks.footprint import count_footprint
from cardialign.pretrain.benchmarks.live_storages import AsOnDevice, LiveStorages
from cardialign.pretrain.methods.base import create_method
from tests.support.small_encoder import SPEC, small_config

ROWS = 4


def test_blocks_are_counted_while_they_live_and_views_are_none() -> None:
    weight = nn.Parameter(torch.zeros(100, 100))
    live = LiveStorages([weight])
    with live:
        a = torch.ones(10, 100)  # 4,000 bytes
        b = a @ weight.t()  # 4,000, and 20,000 multiply-adds of 5 a row and column: 2 x 10 x 100 x 100 FLOP
        del a, b
        torch.empty(500)  # 2,000, gone at once
    assert (live.highest, live.live, live.flop) == (8000, 0, 200_000)
    assert live.moved == 4000 + (4000 + 4000 + 40_000) + 2000  # written; read twice and written; written


def test_gradients_are_counted_apart_as_they_come() -> None:
    first, second = (nn.Parameter(torch.zeros(8, 8)) for _ in range(2))
    live = LiveStorages([first, second])
    live.take_off([first, second])
    with live:
        ((torch.ones(2, 8) @ first) @ second).sum().backward()
    assert live.gradients == 2 * 8 * 8 * 4 and first.grad is None and second.grad is None


def test_autocast_and_attention_of_a_device_on_tensors_without_storage() -> None:
    linear = nn.Linear(4, 4, device="meta")
    with AsOnDevice("cuda", "bf16"), torch.device("meta"):
        assert linear(torch.zeros(2, 4)).dtype == torch.bfloat16
        assert F.layer_norm(torch.zeros(2, 4, dtype=torch.bfloat16), (4,)).dtype == torch.float32
    live = LiveStorages([])
    heads = [torch.zeros(2, 3, 1000, 8, device="meta", requires_grad=True) for _ in range(3)]
    with live, AsOnDevice("cuda", "fp32"):
        mixed = F.scaled_dot_product_attention(*heads)
        mixed.sum().backward()
    assert live.highest < 4 * 2 * 3 * 1000 * 1000 / 4  # no matrix of scores, of which there are two in the plain form


def test_a_weight_is_cast_once_and_what_is_made_of_it_each_time() -> None:
    """As autocast does it. A tensor that is gone leaves its place to another, which is not taken for it."""
    weights = [nn.Parameter(torch.zeros(3, 2, width, device="meta")) for width in range(2, 40)]
    with AsOnDevice("cuda", "bf16"), torch.no_grad():
        for weight in weights:
            assert F.linear(torch.zeros(5, weight[0].numel(), device="meta"), weight.flatten(1)).shape == (5, 3)
        rows, whole = torch.zeros(5, 12, device="meta"), nn.Parameter(torch.zeros(3, 12, device="meta"))
        live = LiveStorages([rows, whole])
        with live:
            kept = [F.linear(rows, whole) for _ in range(2)]
        assert live.live == 2 * (3 * 12) + sum(2 * 5 * 3 for _ in kept)  # one cast, two results


def test_a_second_block_of_the_same_shapes_is_counted_as_the_first() -> None:
    """Shapes are remembered by all that decides them: 2 and 2.0 make different types of whole numbers."""
    live = LiveStorages([])
    with live:
        whole = torch.zeros(10, dtype=torch.int32, device="meta")
        made = [whole * 2, whole * 2.0, whole * 2, whole * 2.0, whole.view(2, 5) * 2, whole.unsqueeze(0)]
    assert [each.dtype for each in made[:4]] == [torch.int32, torch.float32, torch.int32, torch.float32]
    assert [tuple(each.shape) for each in made] == [(10,)] * 4 + [(2, 5), (1, 10)]
    assert (live.live, live.moved) == (6 * 40, 40 + 5 * 80)  # a view is no block; each product reads one and makes one
    counted = [_blocks(depth) for depth in (1, 2, 3)]
    assert counted[2].flop - counted[1].flop == counted[1].flop - counted[0].flop > 0
    assert counted[2].live - counted[1].live == counted[1].live - counted[0].live == 4 * (4 * 12 * 16)


def _blocks(depth: int) -> LiveStorages:
    """Of so many equal layers on 3 rows of 4 tokens: product, norm, gelu and a sum, all kept."""
    weight, live, kept = torch.zeros(16, 16, device="meta"), LiveStorages([]), []
    with live:
        x = torch.zeros(12, 16, device="meta")
        for _ in range(depth):
            kept += [x @ weight, F.layer_norm(x, (16,), weight[0], weight[0])[:]]
            kept += [F.gelu(kept[-1]), x]
            x = x + kept[-2]
        live.kept = kept  # type: ignore[attr-defined]
    return live


def test_what_a_forward_pass_keeps_is_what_pytorch_saves() -> None:
    config = small_config(method={"name": "siglip"})
    counted = count_footprint(config, SPEC, "cpu", ROWS, ROWS)
    torch.manual_seed(0)
    method = create_method(config, SPEC).train()
    given = {p.untyped_storage().data_ptr() for p in [*method.parameters(), *method.buffers()]}
    inputs = {
        "signal": torch.randn(ROWS, 12, SPEC.samples),
        "lead_mask": torch.ones(ROWS, 12, dtype=torch.bool),
        "text_embedding": torch.randn(ROWS, 384),
    }
    given |= {each.untyped_storage().data_ptr() for each in inputs.values()}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no later block takes its place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        features = method(inputs)
    results = sum(each.untyped_storage().nbytes() for each in features.values())
    assert sum(saved.values()) <= counted.saved_bytes <= sum(saved.values()) + results + 1024
    assert counted.joint_bytes >= counted.activation_bytes >= counted.saved_bytes


def test_sizes_flops_and_features_follow_from_the_recipe() -> None:
    config = small_config(method={"name": "siglip"})
    counted = count_footprint(config, SPEC, "cpu", ROWS, 2 * ROWS)
    parameters, flop = count_encoder(config.encoder, SPEC)
    width, dim = config.encoder.embedding_dim, 384
    head = 2 * (dim * width + dim * 2 * width + 2 * width * width)  # linear, expand, contract
    assert counted.parameters.ecg == parameters and counted.passes == 2
    assert counted.parameters.text == 2 * dim + (dim + 1) * width + (dim + 1) * 2 * width + (2 * width + 1) * width
    assert counted.forward_flop == pytest.approx(flop + head, rel=1e-6)
    assert 1.5 < counted.backward_flop / counted.forward_flop < 2.5
    assert counted.feature_bytes == 2 * 4 * width and counted.gradient_width == width
    per_scale = [math.floor((200 - k) / s) + 1 for k, s in ((10, 10), (40, 20))]
    assert counted.tokens == 4 * sum(per_scale)
    assert sum(counted.parameters.groups) == counted.parameters.trained


@pytest.mark.parametrize("method", [{"name": "simclr"}, {"name": "st_mem"}, {"name": "jepa"}])
def test_methods_without_reports_are_counted_too(method: dict) -> None:
    encoder = (
        {"name": "vit1d", "size": "tiny", "patches": "lead", "patch_ms": 200} if method["name"] != "simclr" else None
    )
    config = small_config(method=method, **({"encoder": encoder} if encoder else {}))
    counted = count_footprint(config, SPEC, "cuda", ROWS, 2 * ROWS)
    assert counted.gradient_width == 0 and counted.parameters.text == 0
    assert counted.passes == (2 if method["name"] == "simclr" else 1)  # a mean over rows is encoded once
    assert counted.saved_bytes > 0 and counted.loss_bytes > 0
