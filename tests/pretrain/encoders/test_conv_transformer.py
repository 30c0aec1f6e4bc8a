"""The wav2vec family: sizes from arithmetic on paper, tokens of 16 samples, positions, and tokens that are hidden."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.encoders.blocks.channel_norm import MaskedGroupNorm
from cardialign.pretrain.encoders.blocks.query_pool import QueryPool
from cardialign.pretrain.encoders.conv_transformer import ConvTransformer

B, T, N, D = 3, 200, 12, 16
SPEC = SignalSpec(100, 2)
SMALL = {"width": D, "depth": 2, "heads": 2, "channels": 8, "embedding_dim": 8, "position_kernel": 4}
pooling = pytest.mark.parametrize("pooling", ["mean", "cls"])


def make(spec: SignalSpec = SPEC, **values: Any) -> ConvTransformer:
    torch.manual_seed(0)
    config = parse_config({"encoder": {"name": "conv_transformer", **SMALL, **values}})
    encoder = create_encoder(config.encoder, spec)
    assert isinstance(encoder, ConvTransformer)
    return encoder.double().eval()


def batch() -> tuple[Tensor, Tensor]:
    signal = torch.randn(B, 12, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return signal, torch.ones(B, 12, dtype=torch.bool)


@pytest.mark.parametrize(("size", "D", "depth"), [("small", 768, 8), ("base", 768, 12), ("large", 1024, 24)])
def test_parameters_and_arithmetic_are_those_of_the_published_shape(size: str, D: int, depth: int) -> None:
    C, N, E = 256, 312, 256
    config = parse_config({"encoder": {"name": "conv_transformer", "size": size, "embedding_dim": E}}).encoder
    parameters, flop = count_encoder(config, SignalSpec(500, 10))
    convolutions = 12 * C * 2 + C + 3 * C * C * 2 + 2 * C
    to_tokens = 2 * C + C * D + D + 12 * D
    positions = D * D // 16 * 128 + D
    assert parameters == convolutions + to_tokens + positions + depth * (12 * D * D + 13 * D) + 2 * D + D * E + E
    products = 2500 * 24 * C + (1250 + 625 + 312) * 2 * C * C + N * C * D + 12 * D + D * E
    products += depth * (12 * N * D * D + 2 * N * N * D)
    products += 313 * 128 * D * D // 16  # positions: one token more than there are, of an even kernel
    assert flop == 2 * products


def test_ten_seconds_at_500_hz_are_312_tokens_of_32_ms() -> None:
    encoder = make(SignalSpec(500, 10))
    patches = encoder.embed_patches(torch.zeros(1, 12, 5000), torch.ones(1, 12, dtype=torch.bool))
    assert patches.tokens.shape == (1, 312, D)
    torch.testing.assert_close(patches.seconds[:2], torch.tensor([0.016, 0.048]))


class Without(MaskedGroupNorm):
    """No statistics over the record."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


@torch.no_grad()
def test_a_token_is_made_of_its_own_samples_and_patch_values_are_they() -> None:
    encoder, (signal, leads) = make(), batch()
    encoder.convolutions.norm = Without(1, 8).double()
    before = encoder.embed_patches(signal, leads).tokens
    moved = signal.clone()
    moved[1, 3, 5 * 16 + 15] += 1.0
    apart = (encoder.embed_patches(moved, leads).tokens - before).abs().amax(dim=2) > 0
    assert apart.nonzero().tolist() == [[1, 5]]
    values = encoder.patch_values(signal, leads)
    assert torch.equal(values.view(B, N, 12, 16)[1, 5, 3], signal[1, 3, 80:96].float())


@torch.no_grad()
def test_positions_are_the_grouped_convolution_over_the_neighbours() -> None:
    encoder = make(position_groups=2)
    tokens = encoder.embed_patches(*batch()).tokens
    layer = encoder.positions.convolution
    weight, bias = layer.weight, layer.bias  # (D, D / 2, 4), (D,)
    assert bias is not None
    torch.nn.init.normal_(bias)
    found = encoder.positions(tokens)
    for n, d in ((0, 0), (1, 9), (5, 3), (11, 15)):
        total = float(bias[d])
        for k in range(4):
            place = n + k - 2
            if 0 <= place < N:
                for i in range(D // 2):
                    total += float(weight[d, i, k] * tokens[1, place, d // (D // 2) * (D // 2) + i])
        assert float(found[1, n, d]) == pytest.approx(total * 0.5 * (1 + math.erf(total / 2**0.5)), abs=1e-9)


def kept_places(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(N, generator=generator)[:count] for _ in range(B)])


@pooling
@torch.no_grad()
def test_all_tokens_kept_in_any_order_are_the_whole_record(pooling: str) -> None:
    encoder = make(pooling=pooling)
    patches, order = encoder.embed_patches(*batch()), kept_places(N)
    whole, shuffled = encoder.encode_patches(patches), encoder.encode_patches(patches.keep(order))
    first = int(pooling == "cls")
    assert whole.shape == (B, first + N, D)
    wanted = whole[:, first:].gather(1, order[..., None].expand(-1, -1, D))
    torch.testing.assert_close(shuffled[:, first:], wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled[:, :first], whole[:, :first], rtol=0, atol=1e-6)
    assert torch.equal(encoder(*batch(), return_tokens=True).tokens, whole[:, first:])


@pooling
@torch.no_grad()
def test_what_is_hidden_speaks_through_nothing(pooling: str) -> None:
    """Not through attention, and not through the convolution of positions: only the kept tokens are there."""
    encoder, (signal, leads) = make(pooling=pooling), batch()
    patches, kept = encoder.embed_patches(signal, leads), kept_places(4)
    hidden = torch.ones(B, N, dtype=torch.bool).scatter(1, kept, False)
    other = patches._replace(tokens=torch.where(hidden[..., None], 7.0, patches.tokens))
    before = encoder.encode_patches(patches.keep(kept))
    assert torch.equal(before, encoder.encode_patches(other.keep(kept)))
    masked = encoder.encode_patches(patches._replace(mask=~hidden))  # hidden by a mask, they are hidden as well
    first = int(pooling == "cls")
    found = masked[:, first:].gather(1, kept[..., None].expand(-1, -1, D))
    torch.testing.assert_close(found, before[:, first:], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_padded_record_gives_what_the_cut_record_gives() -> None:
    encoder, (signal, leads) = make(), batch()
    padded = encoder(signal, leads, torch.full((B,), 10 * 16))
    cut = make(SignalSpec(100, 1.6))(signal[..., :160], leads)
    torch.testing.assert_close(padded.embedding, cut.embedding, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 0.0])
def test_the_convolutions_get_a_part_of_their_gradient_and_the_value_stays(factor: float) -> None:
    found = []
    for value in (1.0, factor):
        encoder, (signal, leads) = make(feature_grad_mult=value), batch()
        leads[0, 3] = False
        embedding = encoder(signal, leads).embedding
        (embedding * torch.linspace(-1, 1, 8)).sum().backward()
        found.append((embedding.detach(), {n: p.grad for n, p in encoder.named_parameters()}))
    (whole, full), (value, less) = found
    assert torch.equal(whole, value)
    for name, gradient in full.items():
        assert gradient is not None and gradient.abs().max() > 0
        share = factor if name.startswith("convolutions.") else 1.0
        torch.testing.assert_close(less[name], share * gradient, rtol=1e-6, atol=1e-12)


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"make a token of 256 samples, a record has 200") as caught:
        make(convolutions=8)
    assert "7 or less" in caught.value.remedy
    with pytest.raises(UsageError, match="position_groups 3 do not divide width 16"):
        make(position_groups=3)


@torch.no_grad()
def test_each_query_sees_for_itself_and_the_embedding_is_that_of_their_mean() -> None:
    encoder, (signal, leads) = make(pooling="queries", queries=3, query_width=12, query_heads=2), batch()
    leads[2] = False
    out = encoder(signal, leads, return_tokens=True)
    assert out.views is not None and out.views.shape == (B, 3, 8) and encoder.feature_width == 12
    pool, tokens = encoder.pool, out.tokens
    assert isinstance(pool, QueryPool) and tokens is not None
    seen = torch.zeros(3, 12, dtype=torch.float64)
    keys, values = pool.key_value(pool.token_norm(tokens[1])).split(12, dim=-1)
    queries = pool.query(pool.query_norm(pool.queries))
    for q in range(3):
        for head in range(2):
            part = slice(6 * head, 6 * head + 6)
            weights = [math.exp(float(queries[q, part] @ keys[n, part]) / math.sqrt(6)) for n in range(N)]
            for n in range(N):
                seen[q, part] += weights[n] / sum(weights) * values[n, part]
    seen = pool.norm(pool.out(seen))
    torch.testing.assert_close(out.features[1], seen.mean(dim=0), rtol=0, atol=1e-9)
    views = encoder.projection(seen)
    torch.testing.assert_close(out.views[1].double(), views / views.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert out.features[2].abs().max() == 0 and torch.isfinite(out.views).all()
    with pytest.raises(UsageError, match="query_heads 5 do not divide query_width 12"):
        make(pooling="queries", query_width=12, query_heads=5)
