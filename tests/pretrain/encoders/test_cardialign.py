"""What is missing or padded cannot speak, and every part of the encoder has a say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.encoders.blocks.normalise import NORMALISATIONS
from cardialign.pretrain.encoders.cardialign import CardiAlignEncoder, CardiAlignEncoderConfig

RATE, SAMPLES, B = 100.0, 200, 4
POOLINGS = ["attention", "resample"]


def make(normalisation: str = "none", **values: Any) -> CardiAlignEncoder:
    torch.manual_seed(0)
    config = CardiAlignEncoderConfig.model_validate(
        {"size": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_dim": 8, **values}
    )
    return CardiAlignEncoder(config, SignalSpec(RATE, SAMPLES / RATE), normalisation).double().eval()


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(B, 12, SAMPLES, generator=generator)
    return signal, torch.ones(B, 12, dtype=torch.bool), torch.full((B,), SAMPLES)


def leads(*names: str) -> list[int]:
    return [STANDARD_LEADS.index(name) for name in names]


def same(a: EncoderOutput, b: EncoderOutput) -> None:
    torch.testing.assert_close(a.embedding, b.embedding, rtol=0, atol=1e-7)
    torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-7)
    torch.testing.assert_close(a.group_weights, b.group_weights, rtol=0, atol=1e-7)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("attention", ["se", "eca"])
@torch.no_grad()
def test_shapes_units_and_readable_group_weights(pooling: str, attention: str) -> None:
    encoder = make(pooling=pooling, group_attention=attention)
    out = encoder(*batch(), return_tokens=True)
    assert out.embedding.shape == (B, 8) and out.group_weights.shape == (B, 4) and out.features.shape == (B, 4 * 3 * 16)
    assert out.tokens.shape == (B, 4 * (40 + 20 + 10), 16) and out.token_mask.shape == out.tokens.shape[:2]
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(B))
    torch.testing.assert_close(out.group_weights.sum(-1), torch.ones(B))
    assert out.group_weights.std(dim=0).min() > 0, "the weights belong to the record, not to the model"


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_samples_of_a_missing_lead_cannot_influence_the_embedding(pooling: str, normalisation: str) -> None:
    encoder = make(normalisation, pooling=pooling)
    signal, mask, valid = batch()
    mask[0, leads("V5", "aVF")] = False
    loud = signal.clone()
    loud[0, leads("V5")] = 1e4
    loud[0, leads("aVF")] = torch.nan
    same(encoder(signal, mask, valid), encoder(loud, mask, valid))
    assert not torch.allclose(
        encoder(signal, mask, valid).embedding[0], encoder(signal, torch.ones_like(mask), valid).embedding[0]
    )


@pytest.mark.parametrize("attention", ["se", "eca"])
@torch.no_grad()
def test_a_missing_group_weighs_nothing_and_the_others_share_its_part(attention: str) -> None:
    encoder = make(group_attention=attention)
    signal, mask, valid = batch()
    mask[0, leads("V1", "V2")] = False
    out = encoder(signal, mask, valid)
    septal = encoder.group_names.index("septal")
    assert out.group_weights[0, septal] == 0 and (out.group_weights[1:, septal] > 0).all()
    torch.testing.assert_close(out.group_weights.sum(-1), torch.ones(B))
    assert out.features.unflatten(1, (4, -1))[0, septal].abs().max() == 0
    # not only its samples: nothing at all that the encoder makes of an absent group may reach the embedding
    encoder.patch_embedding.missing_0[leads("V1", "V2")] += 3.0
    same(out, encoder(signal, mask, valid))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_padded_samples_cannot_influence_the_embedding(pooling: str, normalisation: str) -> None:
    encoder = make(normalisation, pooling=pooling)
    signal, mask, valid = batch()
    valid[0], valid[1] = 93, 3  # 93 ends inside a patch of every scale; 3 is shorter than any patch
    noisy = signal.clone()
    noisy[0, :, 93:], noisy[1, :, 3:] = 50.0, torch.nan
    out = encoder(signal, mask, valid)
    same(out, encoder(noisy, mask, valid))
    assert torch.isfinite(out.embedding).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_saying_that_nothing_is_padded_only_saves_work(pooling: str) -> None:
    encoder = make(pooling=pooling)
    signal, mask, valid = batch()
    same(encoder(signal, mask, valid), encoder(signal, mask, None))


@torch.no_grad()
def test_a_record_without_any_lead_gives_a_finite_unit_vector_and_no_weights() -> None:
    encoder = make()
    signal, mask, valid = batch()
    mask[2] = False
    out = encoder(signal, mask, valid)
    assert torch.isfinite(out.embedding).all() and out.group_weights[2].abs().max() == 0
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(B))


@torch.no_grad()
def test_records_do_not_see_each_other() -> None:
    encoder = make("zscore")
    signal, mask, valid = batch()
    mask[1, :3], valid[2] = False, 120
    order = torch.tensor([2, 0, 3, 1])
    out, shuffled = encoder(signal, mask, valid), encoder(signal[order], mask[order], valid[order])
    same(EncoderOutput(out.embedding[order], out.features[order], group_weights=out.group_weights[order]), shuffled)


def by_scale(tokens: torch.Tensor, *counts: int, groups: int = 4) -> list[torch.Tensor]:
    """Tokens (B, N, D) of all scales -> one (B, G, N_s, D) per scale of N_s tokens a group."""
    parts = tokens.split([groups * n for n in counts], dim=1)
    return [part.unflatten(1, (groups, n)) for part, n in zip(parts, counts, strict=True)]


@torch.no_grad()
def test_each_scale_has_its_own_encoder_and_all_groups_share_it() -> None:
    encoder = make()
    before = by_scale(encoder(*batch(), return_tokens=True).tokens, 40, 20, 10)
    encoder.temporal[1].blocks[0].expand.weight.mul_(2.0)
    after = by_scale(encoder(*batch(), return_tokens=True).tokens, 40, 20, 10)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    changed = (before[1] - after[1]).abs().amax(dim=(0, 2, 3))
    assert (changed > 0).all(), "every lead group goes through the same encoder of a scale"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("attention", ["se", "eca"])
def test_gradient_reaches_every_parameter(pooling: str, attention: str) -> None:
    encoder = make(pooling=pooling, group_attention=attention, depth=2).train()
    signal, mask, valid = batch()
    mask[0] = torch.tensor(
        [True, False] * 6
    )  # every lead is missing once, so that each missing-lead embedding speaks ...
    mask[1] = ~mask[0]
    mask[1, leads("V1", "V3")] = True  # ... from a group that is still present
    valid[2] = 150
    out = encoder(signal, mask, valid)
    (out.embedding * torch.randn(B, 8, generator=torch.Generator().manual_seed(3))).sum().backward()
    silent = [
        n
        for n, p in encoder.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or p.grad.abs().max() == 0
    ]
    assert silent == []


def test_voltage_survives_the_patch_embedding() -> None:
    encoder = make()
    signal, mask, _ = batch()
    with torch.no_grad():
        full, low = encoder(signal, mask).embedding, encoder(0.3 * signal, mask).embedding
    assert ((full * low).sum(-1) < 0.999).all(), "low voltage must look different from normal voltage"


def test_drop_path_is_random_in_training_only() -> None:
    encoder = make(drop_path=0.5, dropout=0.2, depth=2)
    assert torch.equal(encoder(*batch()).embedding, encoder(*batch()).embedding)
    encoder.train()
    assert not torch.equal(encoder(*batch()).embedding, encoder(*batch()).embedding)


@torch.no_grad()
def test_overlapping_patches_and_other_lead_groups_are_configuration() -> None:
    encoder = make(
        patches=[{"kernel_ms": 100, "stride_ms": 50}, {"kernel_ms": 400, "stride_ms": 100}],
        lead_groups={"limb": ["I", "II"], "chest": ["V1"], "lone": ["V6"], "avr": ["aVR"], "five": ["III"]},
        group_attention="eca",
    )
    out = encoder(*batch(), return_tokens=True)
    assert out.tokens.shape[1] == 5 * 39 + 5 * 17


@pytest.mark.parametrize(
    ("patch", "reason"), [((3000, 3000), "longer than the record"), ((100, 1), "shorter than one sample")]
)
def test_patches_that_do_not_fit_the_record_are_refused(patch: tuple[int, int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make(patches=[{"kernel_ms": patch[0], "stride_ms": patch[1]}])


@pytest.mark.slow
def test_the_encoder_can_be_exported_as_a_program() -> None:
    encoder = make("zscore").float()
    signal, mask, valid = batch()
    size = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(encoder, (signal, mask, valid), dynamic_shapes=({0: size}, {0: size}, {0: size}))
    mask[0, 3], valid[1] = False, 77
    torch.testing.assert_close(
        program.module()(signal[:3], mask[:3], valid[:3])[0], encoder(signal[:3], mask[:3], valid[:3]).embedding
    )
