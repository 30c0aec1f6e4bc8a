"""S4: the FFT against the slow recurrence and against scipy, its size on paper, a padded record against a cut one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.encoders.s4 import FixedStates, StateSpace

TEN_SECONDS, TWO_SECONDS = SignalSpec(500, 10), SignalSpec(100, 2)


def make(spec: SignalSpec = TWO_SECONDS, **values: Any) -> EcgEncoder:
    torch.manual_seed(0)
    config = parse_config({"encoder": {"name": "s4", "width": 8, "depth": 2, "heads": 2, **values}}).encoder
    return create_encoder(config, spec).eval().double()


def made_up(width: int, state: int) -> StateSpace:
    """Any dynamics, not only those of the start."""
    torch.manual_seed(1)
    states = StateSpace(width, state).double()
    with torch.no_grad():
        for parameter in states.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return states


def recurrence(states: StateSpace, x: Tensor) -> Tensor:
    """The equations of the docstring, one token after the other, in double precision."""
    width, pairs = states.width, states.pairs
    A = torch.complex(-states.log_decay.exp(), states.frequency).view(width, pairs)
    held = torch.exp(states.log_step.exp()[:, None] * A)
    read = torch.view_as_complex(states.readout)

    def run(direction: int, rows: Tensor) -> Tensor:
        state, found = torch.zeros(len(x), width, pairs, dtype=torch.complex128), []
        for n in range(rows.shape[-1]):
            state = held * state + (held - 1) / A * rows[..., n, None]
            found.append(2 * (read[direction] * state).sum(-1).real)
        return torch.stack(found, dim=-1)

    back = run(1, x.flip(-1)).flip(-1)
    one_on = torch.cat([back[..., 1:], torch.zeros_like(back[..., :1])], dim=-1)
    return run(0, x) + one_on + states.skip[:, None] * x


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("state", [2, 8])
def test_the_fft_gives_what_the_recurrence_gives_in_value_and_gradient(length: int, state: int) -> None:
    states = made_up(3, state)
    x = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, length, dtype=torch.float64)
    slow, fast = recurrence(states, x), states(x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    inputs = [x, *states.parameters()]
    gradients = [torch.autograd.grad((found * weight).sum(), inputs, allow_unused=True) for found in (slow, fast)]
    for expected, found in zip(*gradients, strict=True):
        if expected is None or found is None:  # one token hears nothing from behind
            assert length == 1
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_without_an_fft_it_gives_what_the_recurrence_gives(length: int) -> None:
    states, x = made_up(5, 4), torch.randn(3, 5, length, dtype=torch.float64)
    torch.testing.assert_close(FixedStates(states, length)(x), recurrence(states, x))
    ahead = StateSpace(5, 4, directions=1).double()
    torch.testing.assert_close(FixedStates(ahead, length)(x), ahead(x))


def test_a_model_without_ffts_embeds_as_it_did_and_leaves_the_model_as_it_is() -> None:
    model = make(width=16, depth=2, token_ms=30)  # its last token is not whole
    signal, leads = torch.randn(3, 12, model.samples), torch.ones(3, 12, dtype=torch.bool)
    valid = torch.tensor([model.samples, 70, 1])
    plain, before = model.without_fft(), model(signal, leads, valid).embedding
    torch.testing.assert_close(plain(signal, leads, valid).embedding, before, atol=1e-5, rtol=0)
    names = [type(module).__name__ for module in plain.modules()]
    assert "StateSpace" not in names and "FixedStates" not in [type(module).__name__ for module in model.modules()]


def test_a_channel_is_the_filter_that_scipy_makes_of_the_same_differential_equation() -> None:
    """x' = a x + u, y = 2 c x with a real pole: an exponential smoother, discretised by zero-order hold."""
    states = StateSpace(1, 2).double()
    with torch.no_grad():
        states.log_step.fill_(math.log(0.1))
        states.log_decay.fill_(math.log(3.0))
        states.frequency.zero_()
        states.readout.copy_(torch.tensor([[[[0.7, 0.0]]], [[[0.0, 0.0]]]]))
        states.skip.fill_(0.0)
    matrices = tuple(np.array([[value]]) for value in (-3.0, 1.0, 1.4, 0.0))
    a, b, c, _, _ = scipy.signal.cont2discrete(matrices, 0.1, method="zoh")
    u = torch.randn(1, 1, 50, dtype=torch.float64)
    state, expected = 0.0, []
    for value in u.flatten().tolist():
        state = a.item() * state + b.item() * value
        expected.append(c.item() * state)
    torch.testing.assert_close(states(u).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_a_fresh_model_remembers_between_ten_and_a_thousand_tokens_and_forgets_the_rest() -> None:
    torch.manual_seed(0)
    states = StateSpace(256, 8)
    step, decay = states.log_step.exp(), states.log_decay.exp()
    assert step.min() >= 1e-3 and step.max() <= 1e-1
    assert decay.allclose(torch.tensor(0.5)), "S4D-Lin: the real part of A is -1/2"
    assert states.frequency.view(256, 4)[0].tolist() == pytest.approx([0, math.pi, 2 * math.pi, 3 * math.pi])
    response = states.impulse_response(20_000)
    assert response[..., -1].abs().max() < 1e-3 * response.abs().max()


def test_the_default_has_the_parameters_that_arithmetic_gives() -> None:
    D, E, K, pairs = 512, 256, 5, 4
    stem = 12 * K * D + D + 12 * D
    block = 2 * D + (D + 2 * D * pairs + 2 * D * pairs * 2 + D) + (D * 2 * D + 2 * D)
    head = 2 * D + D * E + E
    config = parse_config({"encoder": {"name": "s4", "embedding_dim": E}}).encoder
    parameters, flop = count_encoder(config, TEN_SECONDS)
    assert parameters == stem + 4 * block + head == 2_328_320
    linear = 1000 * (12 * K * D + 4 * D * 2 * D) + 12 * D + D * E
    readouts = 4 * 2 * D * pairs * 1000  # of the impulse response, counted once for all records
    assert flop == pytest.approx(2 * (linear + readouts), rel=1e-6)


@pytest.mark.parametrize("valid", [200, 199, 97, 64, 5, 2, 1])
@pytest.mark.parametrize("values", [{}, {"pooling": "attention", "token_ms": 30}], ids=["mean", "attention"])
@torch.no_grad()
def test_a_padded_record_gives_what_the_cut_record_gives(values: dict[str, Any], valid: int) -> None:
    encoder = make(**values)
    signal = torch.randn(2, 12, 200, generator=torch.Generator().manual_seed(1)).double()
    leads = torch.ones(2, 12, dtype=torch.bool)
    leads[1, 4] = False
    padded = encoder(signal, leads, torch.full((2,), valid))
    cut = encoder(signal[..., :valid], leads)
    torch.testing.assert_close(padded.embedding, cut.embedding, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_token_hears_both_ends_of_the_record() -> None:
    encoder, leads = make(depth=1), torch.ones(1, 12, dtype=torch.bool)
    signal = torch.randn(1, 12, 200, generator=torch.Generator().manual_seed(1)).double()
    before = encoder(signal, leads, return_tokens=True).tokens
    for end in (0, 199):
        changed = signal.clone()
        changed[..., end] += 1.0
        after = encoder(changed, leads, return_tokens=True).tokens
        assert (after[0, 100] - before[0, 100]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("rate", "token_ms", "words"), [(100, 15, "1.5 samples"), (100, 4000, "record's 200"), (500, 0.1, "0.05 samples")]
)
def test_a_token_that_does_not_fit_the_samples_is_refused_with_the_way_out(
    rate: float, token_ms: float, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        make(SignalSpec(rate, 2), token_ms=token_ms)
    assert f"{1000 / rate:g} ms" in refused.value.remedy


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UsageError, match="width 8 is not a multiple of heads 3"):
        make(pooling="attention", heads=3)
