"""What every encoder promises, whatever its name: one test per promise, over all rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput, create_encoder
from cardialign.pretrain.encoders.blocks.beats import coarse, find_beats
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import LEAST_SHARE
from tests.support.soak import long_form

RATE, T, B, E = 100.0, 200, 4, 8
SPEC = SignalSpec(RATE, T / RATE)
CASES: dict[str, dict[str, Any]] = {
    "beat_transformer": {"name": "beat_transformer", "width": 16, "depth": 1, "heads": 2},
    "beat_transformer-packed": {
        "name": "beat_transformer",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "pooling": "attention",
        "attention": "packed",
    },
    "cardialign": {"name": "cardialign", "size": "tiny", "width": 16, "depth": 1, "heads": 2},
    "cardialign-beats": {
        "name": "cardialign",
        "size": "tiny",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "pooling": "max",
        "readout": "beside",
        "beat": True,
        "rhythm": True,
    },
    "conv_transformer": {"name": "conv_transformer", "width": 16, "depth": 1, "heads": 2, "channels": 8},
    "conv_transformer-cls": {
        "name": "conv_transformer",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "channels": 8,
        "convolutions": 3,
        "norm": "channel",
        "pooling": "cls",
        "attention": "packed",
        "feature_grad_mult": 0.1,
    },
    "conv_transformer-queries": {
        "name": "conv_transformer",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "channels": 8,
        "norm": "layer",
        "pooling": "queries",
        "queries": 3,
        "query_width": 12,
        "query_heads": 2,
    },
    "resnet1d": {"name": "resnet1d", "width": 4, "heads": 2},
    "resnet1d-micro-batch": {"name": "resnet1d", "width": 4, "norm": "micro-batch", "pooling": "mean"},
    "resnet1d-bottleneck": {"name": "resnet1d", "depth": 50, "width": 2, "norm": "layer", "max_pool": True},
    "s4": {"name": "s4", "width": 16, "depth": 2, "state": 4},
    "s4-attention": {"name": "s4", "width": 16, "depth": 1, "pooling": "attention", "heads": 2, "token_ms": 20},
    "time_spectrum": {"name": "time_spectrum", "width": 16, "depth": 2, "heads": 2, "patch_ms": 100},
    "time_spectrum-resnet": {
        "name": "time_spectrum",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "patch_ms": 200,
        "patch_layer": "resnet18",
    },
    "vit1d-record": {"name": "vit1d", "width": 16, "depth": 2, "heads": 2},
    "vit1d-lead": {"name": "vit1d", "width": 16, "depth": 2, "heads": 2, "patches": "lead", "pooling": "attention"},
    "vit1d-selector": {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "pooling": "selector"},
    "vit1d-packed": {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "attention": "packed"},
}
SEE_EACH_OTHER = {"resnet1d-micro-batch"}
"""The published BatchNorm, in training: it says so by its name."""

FORGET_VOLTAGE = {"conv_transformer-cls"}
"""The published normalisation of every channel by itself: it says so where it is described."""

AS_MANY_AS_BEATS = {"beat_transformer", "beat_transformer-packed"}
"""A token is a beat: of a whole record, too, only as many are there as it has beats."""

case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(case: str, dtype: torch.dtype = torch.float64) -> EcgEncoder:
    """As if it had been trained a little: a fresh bias of 0 hides what is added where nothing was recorded."""
    encoder = fresh(case)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder.to(dtype).eval()


def fresh(case: str, seed: int = 0) -> EcgEncoder:
    torch.manual_seed(seed)
    config = parse_config({"encoder": {**CASES[case], "embedding_dim": E}})
    return create_encoder(config.encoder, SPEC)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    signal = torch.randn(B, 12, T, generator=torch.Generator().manual_seed(1))
    return signal, torch.ones(B, 12, dtype=torch.bool), torch.full((B,), T)


def gaps() -> tuple[Tensor, Tensor, Tensor]:
    """Record 0 lacks leads, 1 ends early and inside patches, 2 holds 3 samples, 3 lacks nothing."""
    signal, lead_mask, valid = batch()
    lead_mask[0, [2, 6, 11]] = False
    valid[1], valid[2] = 93, 3
    return signal, lead_mask, valid


def found_beats(signal: Tensor) -> int:
    return int(find_beats(coarse(signal[None], torch.ones(1, 12, 1, dtype=torch.bool), RATE), LEAST_SHARE).sum())


def same(a: EncoderOutput, b: EncoderOutput, atol: float = 1e-7) -> None:
    """Equal in all that means something: tokens outside their mask do not."""
    torch.testing.assert_close(a.embedding, b.embedding, rtol=0, atol=atol)
    torch.testing.assert_close(a.features, b.features, rtol=0, atol=atol)
    assert (a.tokens is None) == (b.tokens is None)
    if a.tokens is not None and b.tokens is not None and a.token_mask is not None:
        assert b.token_mask is not None and torch.equal(a.token_mask, b.token_mask)
        torch.testing.assert_close(a.tokens[a.token_mask], b.tokens[b.token_mask], rtol=0, atol=atol)


def test_every_encoder_has_a_case() -> None:
    assert {values["name"] for values in CASES.values()} == set(ENCODERS.own)


@case
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_what_was_not_recorded_changes_nothing_nan_included(case: str, training: bool) -> None:
    encoder, (signal, lead_mask, valid) = make(case).train(training), gaps()
    noisy = signal.clone()
    noisy[0, 2], noisy[0, 6], noisy[0, 11] = torch.nan, 1e4, -torch.inf
    noisy[1, :, 93:], noisy[2, :, 3:] = torch.nan, 50.0
    same(encoder(signal, lead_mask, valid, True), encoder(noisy, lead_mask, valid, True))


@case
@torch.no_grad()
def test_a_missing_lead_is_not_a_flat_one(case: str) -> None:
    encoder, (signal, lead_mask, valid) = make(case), batch()
    signal[:, 5] = 0.0
    missing = lead_mask.clone()
    missing[:, 5] = False
    flat, absent = encoder(signal, lead_mask, valid), encoder(signal, missing, valid)
    assert ((flat.embedding - absent.embedding).abs().amax(dim=1) > 1e-6).all()


@case
@torch.no_grad()
def test_voltage_is_seen(case: str) -> None:
    encoder, (signal, lead_mask, valid) = make(case), batch()
    full, low = (encoder(size * signal, lead_mask, valid).embedding for size in (1.0, 0.3))
    seen = (full * low).sum(dim=1) < 0.9999
    if case in FORGET_VOLTAGE:
        assert not seen.any(), "what forgets it is named, and what is named does"
    else:
        assert seen.all(), "low voltage must look different from normal voltage"


@case
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_saying_that_nothing_is_padded_only_saves_work(case: str, training: bool) -> None:
    encoder, (signal, lead_mask, valid) = make(case).train(training), batch()
    lead_mask[0, 3] = False
    same(encoder(signal, lead_mask, None, True), encoder(signal, lead_mask, valid, True))


@case
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_record_without_any_lead_or_sample_gives_a_finite_unit_vector(case: str, padded: bool) -> None:
    encoder, (signal, lead_mask, valid) = make(case), batch()
    lead_mask[2], valid[1] = False, 0
    out = encoder(signal, lead_mask, valid if padded else None, True)
    assert torch.isfinite(out.embedding).all() and torch.isfinite(out.features).all()
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(B))
    assert not out.token_mask[2].any() and out.token_mask[1].any() != padded
    assert out.features[2].abs().max() == 0


@case
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_records_do_not_see_each_other(case: str, training: bool) -> None:
    encoder, (signal, lead_mask, valid) = make(case).train(training), gaps()
    together = encoder(signal, lead_mask, valid).embedding
    alone = torch.cat([encoder(signal[i : i + 1], lead_mask[i : i + 1], valid[i : i + 1]).embedding for i in range(B)])
    apart = float((together - alone).abs().max())
    if training and case in SEE_EACH_OTHER:
        assert apart > 1e-3, "what sees other records is named, and what is named does"
    else:
        assert apart < 1e-7


@case
@torch.no_grad()
def test_evaluation_is_a_function_of_the_input(case: str) -> None:
    encoder, inputs = make(case), gaps()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first = encoder(*inputs)
    assert torch.equal(first.embedding, encoder(*inputs).embedding)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


@case
def test_gradient_reaches_every_parameter(case: str) -> None:
    encoder, (signal, lead_mask, valid) = make(case).train(), batch()
    lead_mask[0] = torch.tensor(
        [True, False] * 6
    )  # each lead is missing once, in a lead group of which others are there
    lead_mask[1] = ~lead_mask[0]
    lead_mask[1, [6, 8]] = True
    valid[2] = 150
    out = encoder(signal, lead_mask, valid)
    (out.embedding * torch.randn(B, E, generator=torch.Generator().manual_seed(3))).sum().backward()
    silent = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not torch.isfinite(parameter.grad).all() or parameter.grad.abs().max() == 0
    ]
    assert silent == []


@case
def test_no_parameter_is_a_scalar(case: str) -> None:
    assert all(parameter.ndim > 0 for parameter in make(case).parameters()), "DeepSpeed refuses 0-dimensional ones"


@case
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_half_precision_gives_float32_unit_vectors(case: str, autocast: bool) -> None:
    encoder = make(case, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole, partial = encoder(*batch()).embedding, encoder(*gaps()).embedding
    for half in (whole, partial):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.norm(dim=1), torch.ones(B))
    assert ((whole * make(case)(*batch()).embedding).sum(dim=1) > 0.99).all()


@case
@torch.no_grad()
def test_tokens_features_and_masks_have_the_shapes_they_are_said_to_have(case: str) -> None:
    encoder, inputs = make(case), gaps()
    out = encoder(*inputs, return_tokens=True)
    N = out.tokens.shape[1]
    assert out.embedding.shape == (B, E) and out.features.shape == (B, encoder.feature_width)
    assert out.tokens.shape == (B, N, encoder.token_width)
    assert out.token_mask.shape == (B, N) and out.token_mask.dtype == torch.bool
    assert torch.equal(out.valid_samples, inputs[2])
    seen = out.token_mask.sum(dim=1)
    whole = 12 * found_beats(inputs[0][3]) if case in AS_MANY_AS_BEATS else N
    assert seen[3] == whole <= N and 0 < seen[1] < whole and seen[2] < seen[1]
    without = encoder(*inputs)
    assert without.tokens is None and without.token_mask is None
    assert torch.equal(without.embedding, out.embedding)


@case
def test_the_same_seed_gives_the_same_weights(case: str) -> None:
    first, again, other = (fresh(case, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


TRACED = (
    "beat_transformer",
    "cardialign",
    "conv_transformer",
    "conv_transformer-cls",
    "conv_transformer-queries",
    "resnet1d",
    "s4",
    "time_spectrum",
    "vit1d-lead",
)  # tracing takes most of this file's time; recipes are traced whole in tests/pretrain/export


@pytest.mark.parametrize(
    "case", [case if case in ("cardialign", "s4", "vit1d-lead") else long_form(case) for case in TRACED]
)
def test_it_can_be_exported_with_a_dynamic_batch(case: str) -> None:
    encoder, (signal, lead_mask, valid) = make(case, dtype=torch.float32), batch()
    size = torch.export.Dim("batch", min=1, max=1024)
    sizes = ({0: size}, {0: size}, {0: size})
    program = torch.export.export(encoder, (signal, lead_mask, valid), dynamic_shapes=sizes).module()
    lead_mask[0, 3], valid[1] = False, 77
    traced, called = (each(signal[:3], lead_mask[:3], valid[:3]) for each in (program, encoder))
    torch.testing.assert_close(traced[0], called.embedding)
