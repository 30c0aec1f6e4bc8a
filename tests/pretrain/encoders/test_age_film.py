"""The age gate: fresh weights and unknown ages are the encoder without it to the last bit; days count at birth; a
newborn's days, each block, scale and lead group can be told apart by it once it has learnt."""

from __future__ import annotations

import math

import pytest
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.age_film import AgeFilm, scaled_age
from cardialign.pretrain.encoders.cardialign import CardiAlignEncoder, CardiAlignEncoderConfig

B, T = 4, 300
AGES = torch.tensor([0.0, 9 / 365.25, 6.5, 71.0])


def make(age_gate: bool, **values: object) -> CardiAlignEncoder:
    torch.manual_seed(5)
    given = {"size": "tiny", "width": 16, "depth": 2, "heads": 2, "embedding_dim": 8, "beat": True, "rhythm": True}
    config = CardiAlignEncoderConfig.model_validate({**given, "age_gate": age_gate, **values})
    return CardiAlignEncoder(config, SignalSpec(100, T / 100)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One record without V1 and V2, one with a padded end."""
    lead_mask = torch.ones(B, 12, dtype=torch.bool)
    lead_mask[1, 6:8] = False
    return torch.randn(B, 12, T, generator=torch.Generator().manual_seed(1)), lead_mask, torch.tensor([T, T, 220, T])


def learnt(encoder: EcgEncoder) -> EcgEncoder:
    """As if it had been trained: no weight of the gate is 0 any more."""
    for name, parameter in encoder.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter.data, std=0.3, generator=torch.Generator().manual_seed(2))
    return encoder


def equal(a: EncoderOutput, b: EncoderOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)


@pytest.mark.parametrize("attention", ["dense", "packed"])
@pytest.mark.parametrize("readout", ["weighted", "beside"])
def test_a_fresh_gate_is_the_encoder_without_it_bit_for_bit(attention: str, readout: str) -> None:
    values = {"attention": attention, "readout": readout, "group_attention": "eca" if readout == "beside" else "se"}
    plain, gated = make(False, **values), make(True, **values)
    without = {name for name, _ in plain.named_parameters()}
    assert {name for name, _ in gated.named_parameters() if "gate" in name}.isdisjoint(without)
    assert all(torch.equal(plain.state_dict()[name], gated.state_dict()[name]) for name in without)
    signal, leads, valid = inputs()
    assert not plain.reads_age and gated.reads_age
    assert equal(plain(signal, leads, valid, True), gated(signal, leads, valid, True, age=AGES))
    outputs = [encoder(signal, leads, valid, **age).embedding for encoder, age in ((plain, {}), (gated, {"age": AGES}))]
    weights = torch.randn(8, generator=torch.Generator().manual_seed(4))
    for output in outputs:
        (output @ weights).sum().backward()
    for name, parameter in plain.named_parameters():
        other = gated.get_parameter(name).grad
        assert (parameter.grad is None and other is None) or torch.equal(parameter.grad, other), name


@torch.no_grad()
def test_an_unknown_age_is_the_encoder_without_the_gate_whatever_was_learnt() -> None:
    plain, gated = make(False), learnt(make(True))
    given = inputs()
    nobody = gated(*given, age=torch.full((B,), torch.nan))
    assert equal(plain(*given), nobody) and equal(plain(*given), gated(*given))
    some = gated(*given, age=torch.tensor([0.01, torch.nan, 6.5, torch.nan]))
    for row, alike in enumerate((False, True, False, True)):
        assert torch.equal(some.embedding[row], nobody.embedding[row]) is alike


@torch.no_grad()
def test_what_was_learnt_depends_on_the_age_and_on_that_of_its_own_record_alone() -> None:
    gated = learnt(make(True))
    given, older = inputs(), AGES.clone()
    older[1] += 4 / 365.25
    before, after = gated(*given, age=AGES), gated(*given, age=older)
    assert [torch.equal(before.features[row], after.features[row]) for row in range(B)] == [True, False, True, True]
    assert (before.group_weights[1] - after.group_weights[1]).abs().max() > 1e-5
    assert before.group_weights[1, 2] == 0, "a missing lead group stays without a say"


@pytest.mark.parametrize("readout", ["weighted", "beside"])
def test_every_gate_has_a_say_of_its_own(readout: str) -> None:
    """With all others at rest: three scales of two blocks, and those of scales, beat, rhythm and lead groups."""
    names = [
        name for name, _ in make(True).named_modules() if name and isinstance(make(True).get_submodule(name), AgeFilm)
    ]
    assert len(names) == 3 * 2 + 4
    given = inputs()
    with torch.no_grad():
        plain = make(True, readout=readout)(*given, age=AGES)
        for name in names:
            gated = make(True, readout=readout)
            for parameter in gated.get_submodule(name).parameters():
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
            assert (gated(*given, age=AGES).embedding - plain.embedding).abs().amax(dim=1).min() > 1e-5, name


@torch.no_grad()
def test_packed_and_dense_gates_agree() -> None:
    dense, packed = learnt(make(True)), learnt(make(True, attention="packed"))
    one, other = dense(*inputs(), age=AGES), packed(*inputs(), age=AGES)
    torch.testing.assert_close(one.features, other.features, rtol=0, atol=1e-5)


def test_a_gate_can_be_put_in_later() -> None:
    plain = make(False)
    gated = plain.gated()
    given = inputs()
    assert gated.reads_age and not plain.reads_age and plain.age_gate is None
    assert set(gated.state_dict()) == set(make(True).state_dict())
    with torch.no_grad():
        assert equal(plain(*given), gated(*given, age=AGES))
        learnt(gated)
        assert not equal(plain(*given), gated(*given, age=AGES)) and learnt(make(True)).gated().reads_age


def test_the_scale_of_ages_by_hand() -> None:
    """ln(1 + days / 3) / ln(1 + 36525 / 3): worked out with a calculator."""
    days = torch.tensor([0.0, 1, 7, 28, 365.25, 18 * 365.25, 36525, 50000])
    by_hand = [0.0, 0.03058, 0.12799, 0.24830, 0.51143, 0.81775, 1.0, 1.0]
    found = scaled_age(days / 365.25)
    assert found.scaled.tolist() == pytest.approx(by_hand, abs=2e-4) and found.known.all()
    unknown = scaled_age(torch.tensor([math.nan, 3.0]))
    assert unknown.known.tolist() == [False, True] and unknown.scaled[0] == 0
    halves = scaled_age(torch.tensor([2.0, 3.0]).bfloat16() / 365.25)  # days 2 and 3 stay apart in bfloat16
    assert (halves.scaled[1] - halves.scaled[0]).item() == pytest.approx(0.0194, abs=0.002)


def test_film_is_its_formula() -> None:
    """gamma * F + beta with gamma - 1 and beta from a two-layer MLP, by hand for one channel and two hidden units."""
    film = AgeFilm(1, hidden=2)
    with torch.no_grad():
        film.hidden_weight.copy_(torch.tensor([2.0, -1.0]))
        film.hidden_bias.copy_(torch.tensor([0.5, 0.25]))
        film.weight.copy_(torch.tensor([[0.3, -0.7], [1.1, 0.2]]))
        film.bias.copy_(torch.tensor([0.05, -0.4]))
    age = scaled_age(torch.tensor([1.0]))
    a = age.scaled.item()

    def gelu(x: float) -> float:
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2))) / math.sqrt(2)  # two hidden units

    h = gelu(2 * a + 0.5), gelu(-a + 0.25)
    wanted = (1 + 0.3 * h[0] - 0.7 * h[1] + 0.05) * 1.7 + 1.1 * h[0] + 0.2 * h[1] - 0.4
    assert film(torch.full((1, 3, 1), 1.7), age)[0, 2, 0].item() == pytest.approx(wanted, rel=1e-5)
    assert all(parameter.ndim >= 1 for parameter in AgeFilm(4).parameters())
