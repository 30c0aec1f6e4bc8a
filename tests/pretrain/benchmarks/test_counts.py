"""The sizes of recipes, held by arithmetic on paper and by the modules that a run makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.counts import count_encoder, count_recipe
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.encoders.cardialign import CardiAlignEncoderConfig
from cardialign.pretrain.methods.base import create_method
from tests.support.small_encoder import SPEC, small_config

TEN_SECONDS = SignalSpec(500, 10)
E = 256


def count(**encoder: Any) -> tuple[int, int]:
    return count_encoder(parse_config({"encoder": {**encoder, "embedding_dim": E}}).encoder, TEN_SECONDS)


def test_a_resnet_of_eighteen_layers_costs_what_its_convolutions_cost() -> None:
    multiply_adds = 2500 * 12 * 64 * 7 + 4 * 2500 * 64 * 64 * 3
    for inputs, width, T in ((64, 128, 1250), (128, 256, 625), (256, 512, 313)):
        multiply_adds += T * (inputs * width * 3 + 3 * width * width * 3 + inputs * width)
    multiply_adds += 12 * 64 + 313 * 512 + 512 * E  # missing leads, attention pooling, projection
    assert count(name="resnet1d") == (3_981_504, 2 * multiply_adds)
    assert 2 * multiply_adds == 3_430_027_776


@pytest.mark.parametrize(("size", "D"), [("tiny", 192), ("base", 768)])
def test_a_transformer_costs_12_width_squared_per_block_and_token(size: str, D: int) -> None:
    N, values = 50, 1200
    multiply_adds = 12 * (N * 12 * D * D + 2 * N * N * D)  # linear maps of 12 blocks; scores and their mixing
    multiply_adds += N * values * D + 12 * D + D * E  # patches, missing leads, projection; the mean is no product
    assert count(name="vit1d", size=size)[1] == 2 * multiply_adds


@pytest.mark.parametrize("recipe", ["cardialign-tiny", "cardialign-small", "cardialign-base", "cardialign-xl"])
def test_the_main_recipe_has_the_parameters_that_arithmetic_gives(recipe: str) -> None:
    config = load_config(recipe).encoder
    assert isinstance(config, CardiAlignEncoderConfig) and config.width is not None and config.depth is not None
    D, G, S, W = config.width, 4, 3, 40 + 50  # samples of a beat at 100 Hz
    kernels = sum(int(scale.kernel_ms / 2) for scale in config.patches)
    patches = 12 * kernels * D + S * (3 * G * D + 12 * D)  # weights; bias, norm and missing leads of each scale
    temporal = S * (config.depth * (12 * D * D + 13 * D) + 2 * D)
    beat = 2 * 12 * W * D + G * D + G * (D * D + D) if config.beat else 0
    rhythm = 22 * 4 * D + 4 * D + 4 * D * D + D if config.rhythm else 0
    pooling_and_norm = 0 if config.pooling == "max" else S * D + 2 * S * D
    views = S + config.beat
    group_attention = (views * D * 8 + 8) + (8 * G * 8 + 8) + (8 * G + G)
    projection = (G * views + config.rhythm) * D * config.embedding_dim + config.embedding_dim
    total = patches + temporal + beat + rhythm + pooling_and_norm + group_attention + projection
    assert count_encoder(config, TEN_SECONDS)[0] == total


def test_the_sizes_cost_what_they_are_said_to_cost() -> None:
    """A 38 M parameter model of the field takes about 20 GFLOP a record; base may take 25."""
    cost = {name: count_encoder(load_config(f"cardialign-{name}").encoder, TEN_SECONDS) for name in ("base", "xl")}
    assert 15e9 < cost["base"][1] <= 25e9 and 20e6 < cost["base"][0] < 40e6
    assert cost["xl"][1] > 8 * cost["base"][1]


@pytest.mark.parametrize("trainable", ["frozen", "partial", "full"])
def test_what_trains_is_what_trains_in_a_run(trainable: str) -> None:
    config = small_config(text={"encoder": "minilm", "max_tokens": 32, "trainable": trainable, "train_layers": 2})
    counted, method = count_recipe(config, SPEC), create_method(config, SPEC)
    assert counted.trained_parameters == sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert counted.encoder_parameters == sum(p.numel() for p in method.ecg.parameters())
    assert counted.note is None and (counted.method, counted.encoder) == ("cardialign", "cardialign")


def test_a_packed_encoder_costs_what_a_dense_one_costs_for_a_whole_record() -> None:
    dense, packed = (count(name="vit1d", patches="lead", attention=way) for way in ("dense", "packed"))
    assert dense == packed


def test_a_report_encoder_that_is_not_here_is_named_and_not_fetched() -> None:
    counted = count_recipe(small_config(text={"encoder": "nobody/has-this", "trainable": "full"}), SPEC)
    assert counted.trained_parameters is None and counted.forward_flop > 0
    assert counted.note == "report encoder nobody/has-this is not on this machine: what trains was not counted"


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    count(name="vit1d")
    assert torch.equal(torch.get_rng_state(), before)
