"""ViT-1D: its size from arithmetic on paper, its patches, and the parts of which a masked autoencoder is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.encoders.vit1d import Patches, Vit1d

B, T = 3, 200
SPEC = SignalSpec(100, 2)
SMALL = {"width": 16, "depth": 2, "heads": 2, "embedding_dim": 8}
both = pytest.mark.parametrize("patches", ["record", "lead"])


def make(spec: SignalSpec = SPEC, normalisation: str = "none", **values: Any) -> Vit1d:
    torch.manual_seed(0)
    config = parse_config({"encoder": {"name": "vit1d", **values}})
    encoder = create_encoder(config.encoder, spec, normalisation).eval()
    assert isinstance(encoder, Vit1d)
    return encoder


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 12, T, generator=torch.Generator().manual_seed(1)), torch.ones(B, 12, dtype=torch.bool)


@both
@pytest.mark.parametrize(("size", "D"), [("tiny", 192), ("small", 384), ("base", 768)])
def test_the_parameters_are_those_that_arithmetic_gives(size: str, D: int, patches: str) -> None:
    block = 12 * D * D + 13 * D  # 4 D^2 of attention and 8 D^2 of the MLP; biases 4 D + 5 D, two LayerNorms 4 D
    K = 100 * 12 if patches == "record" else 150
    expected = K * D + D + 12 * D + 12 * block + 2 * D + D * 256 + 256
    with torch.device("meta"):
        encoder = make(SignalSpec(500, 10), size=size, patches=patches)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


def test_nine_seconds_at_250_hz_are_the_360_patches_of_st_mem() -> None:
    encoder = make(SignalSpec(250, 9), patches="lead", **SMALL)
    patches = encoder.embed_patches(torch.zeros(1, 12, 2250), torch.ones(1, 12, dtype=torch.bool))
    assert encoder.patch_samples == 75 and patches.tokens.shape == (1, 360, 16)
    torch.testing.assert_close(patches.seconds[:3], torch.tensor([0.15, 0.45, 0.75]))
    assert torch.equal(patches.seconds.view(12, 30), patches.seconds[:30].expand(12, 30)), "leads share their times"


@torch.no_grad()
def test_patch_values_are_the_normalised_signal_cut() -> None:
    signal, leads = batch()
    leads[0, 4] = False
    expected = torch.where(leads[..., None], signal, 0.0)
    by_lead = make(patches="lead", patch_ms=300, **SMALL).patch_values(signal, leads)
    assert torch.equal(by_lead.view(B, 12, 180), expected[..., :180]), "the last 20 samples fill no patch"
    by_record = make(patches="record", patch_ms=200, **SMALL).patch_values(signal, leads)
    assert torch.equal(by_record.view(B, 10, 12, 20).transpose(1, 2).flatten(2), expected)
    scaled = make(SPEC, "minmax", patches="lead", **SMALL).patch_values(signal, leads)
    assert scaled.min() >= 0 and scaled.max() <= 1


def kept_places(encoder: Vit1d, count: int) -> Tensor:
    """int64 (B, count): other patches in every record, in no order."""
    generator = torch.Generator().manual_seed(7)
    N = encoder.embed_patches(*batch()).tokens.shape[1]
    return torch.stack([torch.randperm(N, generator=generator)[:count] for _ in range(B)])


@both
@torch.no_grad()
def test_positions_follow_the_tokens_that_are_kept(patches: str) -> None:
    encoder = make(patches=patches, **SMALL).double()
    all_patches = encoder.embed_patches(*batch())
    N = all_patches.tokens.shape[1]
    order = kept_places(encoder, N)
    whole, shuffled = encoder.encode_patches(all_patches), encoder.encode_patches(all_patches.keep(order))
    torch.testing.assert_close(shuffled, whole.gather(1, order[..., None].expand_as(whole)), rtol=0, atol=1e-6)
    assert torch.equal(encoder(*batch(), return_tokens=True).tokens, whole)


@both
@torch.no_grad()
def test_kept_tokens_know_nothing_of_the_others_and_equal_records_encoded_alone(patches: str) -> None:
    encoder, (signal, leads) = make(patches=patches, **SMALL).double(), batch()
    kept = kept_places(encoder, 4)
    all_patches = encoder.embed_patches(signal, leads)
    together = encoder.encode_patches(all_patches.keep(kept))
    for i in range(B):
        alone = Patches(all_patches.tokens[i : i + 1, kept[i]], None, all_patches.seconds[kept[i]])
        torch.testing.assert_close(together[i : i + 1], encoder.encode_patches(alone), rtol=0, atol=1e-6)
    others = torch.ones(all_patches.tokens.shape[:2], dtype=torch.bool).scatter(1, kept, False)
    changed = all_patches._replace(tokens=torch.where(others[..., None], torch.nan, all_patches.tokens))
    assert torch.equal(encoder.encode_patches(changed.keep(kept)), together)


def test_keeping_twice_is_keeping_once() -> None:
    encoder = make(patches="lead", **SMALL)
    patches = encoder.embed_patches(*batch(), torch.tensor([T, 93, 3]))
    first = torch.tensor([[5, 3, 70], [0, 2, 1], [8, 9, 4]])
    twice, once = patches.keep(first).keep(torch.tensor([[2, 0]] * B)), patches.keep(first[:, [2, 0]])
    assert all(torch.equal(a, b) for a, b in zip(twice, once, strict=True))
    assert once.mask.tolist() == [[True, True], [True, True], [False, False]]


@both
def test_packed_equals_dense_for_kept_tokens_in_value_and_gradient(patches: str) -> None:
    signal, leads = batch()
    leads[0, :6], valid = False, torch.tensor([T, 93, 3])
    results = []
    for attention in ("dense", "packed"):
        encoder = make(patches=patches, attention=attention, **SMALL).double().train()
        kept = encoder.embed_patches(signal, leads, valid).keep(kept_places(encoder, 6))
        tokens = torch.where(kept.mask[..., None], encoder.encode_patches(kept), 0.0)
        tokens.square().sum().backward()
        results.append((tokens, [p.grad for p in encoder.temporal.parameters()]))
    (dense, dense_gradients), (packed, packed_gradients) = results
    torch.testing.assert_close(packed, dense, rtol=0, atol=1e-6)
    for ours, reference in zip(packed_gradients, dense_gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("valid", [199, 93, 60, 30])
@torch.no_grad()
def test_a_padded_record_gives_what_the_cut_record_gives(patches: str, valid: int) -> None:
    encoder, (signal, leads) = make(patches=patches, **SMALL).double(), batch()
    padded = encoder(signal, leads, torch.tensor([valid, T, T])).embedding[:1]
    torch.testing.assert_close(padded, encoder(signal[:1, :, :valid], leads[:1]).embedding, rtol=0, atol=1e-6)


@torch.no_grad()
def test_any_subset_of_leads_is_a_record_of_those_leads() -> None:
    encoder, (signal, leads) = make(patches="lead", **SMALL).double(), batch()
    leads[:, 2:] = False
    patches = encoder.embed_patches(signal, torch.ones_like(leads))
    n = patches.tokens.shape[1] // 12
    two = Patches(patches.tokens[:, : 2 * n], None, patches.seconds[: 2 * n])
    tokens = encoder(signal, leads, return_tokens=True).tokens[:, : 2 * n]
    torch.testing.assert_close(tokens, encoder.encode_patches(two), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("patch_ms", "reason"), [(3000, "longer than the record"), (1, "shorter than one sample")])
def test_patches_that_do_not_fit_the_record_are_refused(patch_ms: float, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make(patch_ms=patch_ms, **SMALL)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="width 192 is not a multiple of heads 5"):
        make(heads=5)
    with pytest.raises(UsageError, match="width / heads = 3 is odd"):
        make(width=12, heads=4)


@pytest.mark.parametrize("attention", ["dense", "packed"])
@torch.no_grad()
def test_a_stretch_that_is_missing_has_no_say_and_is_not_flat(attention: str) -> None:
    """Of `lead` patches: whatever stands there, NaN included, changes nothing; a whole lead is a missing lead."""
    torch.manual_seed(0)
    section = {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "patch_ms": 200}
    config = parse_config({"encoder": {**section, "pooling": "selector", "attention": attention}}).encoder
    encoder, signal = create_encoder(config, SignalSpec(100.0, 2.0)).eval(), torch.randn(2, 12, 200)
    leads, missing = torch.ones(2, 12, dtype=torch.bool), torch.zeros(2, 12, 200, dtype=torch.bool)
    missing[0, 3, 45:50], missing[1, 7] = True, True
    noisy, flat, without = signal.clone(), signal.clone(), leads.clone()
    noisy[0, 3, 40:60], noisy[1, 7], flat[0, 3, 40:60], without[1, 7] = 7.0, 5.0, 0.0, False
    found = encoder(signal, leads, missing=missing).embedding
    torch.testing.assert_close(encoder(noisy, leads, missing=missing).embedding, found)
    torch.testing.assert_close(encoder(signal, without).embedding[1], found[1])
    assert (encoder(flat, leads).embedding[0] - found[0]).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"set encoder\.patches to lead"):
        whole = create_encoder(parse_config({"encoder": {**section, "patches": "record"}}).encoder, SPEC)
        whole(torch.randn(1, 12, 200), leads[:1], missing=missing[:1])
