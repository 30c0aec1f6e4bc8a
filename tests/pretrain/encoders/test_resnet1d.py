"""ResNet-1D: its size from arithmetic on paper, and a padded record that is worth exactly what was recorded of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder

SPEC = SignalSpec(500, 10)


def make(spec: SignalSpec = SPEC, **values: Any) -> EcgEncoder:
    torch.manual_seed(0)
    return create_encoder(parse_config({"encoder": {"name": "resnet1d", **values}}).encoder, spec).eval()


def test_eighteen_layers_have_the_parameters_that_arithmetic_gives() -> None:
    stem = 12 * 64 * 7
    stages = 4 * 64 * 64 * 3
    for inputs, width in ((64, 128), (128, 256), (256, 512)):
        stages += inputs * width * 3 + 3 * width * width * 3 + inputs * width  # four convolutions of 3, a shortcut of 1
    norms = 2 * (64 + 4 * 64 + 5 * (128 + 256 + 512))
    backbone = stem + stages + norms
    assert backbone == 3_848_832, "what MERL's backbone has, before its pooling"
    missing, query, projection = 12 * 64, 512, 512 * 256 + 256
    with torch.device("meta"):
        published, ours = (sum(p.numel() for p in make(norm=n).parameters()) for n in ("micro-batch", "group"))
    assert published == backbone + missing + query + projection
    assert ours == published + 64, "the first convolution's bias"


@pytest.mark.parametrize(("depth", "blocks", "channels"), [(18, 8, 512), (34, 16, 512), (50, 16, 2048)])
def test_depth_counts_convolutions_and_ten_seconds_are_313_tokens(depth: int, blocks: int, channels: int) -> None:
    with torch.device("meta"):
        encoder = make(depth=depth, heads=8)
        signal, leads = torch.zeros(2, 12, SPEC.samples), torch.ones(2, 12, dtype=torch.bool)
        assert encoder(signal, leads, return_tokens=True).tokens.shape == (2, 313, channels)
        assert make(max_pool=True)(signal, leads, return_tokens=True).tokens.shape == (2, 157, 512)
    assert len(encoder.blocks) == blocks
    assert sum(len(block.convolutions) for block in encoder.blocks) + 2 == depth, "and the first and the last layer"


@pytest.mark.parametrize("valid", [200, 199, 97, 64, 33, 17, 16, 2, 1])
@pytest.mark.parametrize(
    "values",
    [{}, {"norm": "layer", "max_pool": True, "pooling": "mean"}, {"norm": "micro-batch"}, {"depth": 50, "width": 2}],
    ids=["group", "layer", "micro-batch", "bottleneck"],
)
@torch.no_grad()
def test_a_padded_record_gives_what_the_cut_record_gives(values: dict[str, Any], valid: int) -> None:
    encoder = make(SignalSpec(100, 2), **{"width": 4, "heads": 2, **values}).double()
    for parameter in encoder.parameters():
        parameter += 0.1 * torch.randn_like(parameter)  # a fresh bias of 0 hides what leaks through it
    signal = torch.randn(2, 12, 200, generator=torch.Generator().manual_seed(1))
    leads = torch.ones(2, 12, dtype=torch.bool)
    padded = encoder(signal, leads, torch.tensor([valid, 200]), return_tokens=True)
    cut = encoder(signal[:1, :, :valid], leads[:1], None, return_tokens=True)
    torch.testing.assert_close(padded.embedding[:1], cut.embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded.features[:1], cut.features, rtol=0, atol=1e-9)
    tokens = cut.tokens.shape[1]
    assert padded.token_mask[0].sum() == tokens
    torch.testing.assert_close(padded.tokens[0, :tokens], cut.tokens[0], rtol=0, atol=1e-9)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="heads 3 do not divide the 512 channels"):
        make(heads=3)
    assert make(SignalSpec(100, 2), width=3, heads=5, pooling="mean").feature_width == 24


def test_an_unknown_normalisation_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="is not one of group, layer, micro-batch"):
        make(norm="batch")
