"""Packed sequences give the encoder's dense results, gradients and losses, whatever is missing or padded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.export.program import EmbeddingProgram
from cardialign.pretrain.methods.base import create_method
from tests.support.small_encoder import SPEC, small_config

B, T = 6, SPEC.samples


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(padded: bool = True) -> dict[str, torch.Tensor]:
    """One record without septal leads, one without any lead,
    and (padded) one that ends inside a patch and one without a whole patch.
    """
    generator = torch.Generator().manual_seed(1)
    lead_mask = torch.ones(B, 12, dtype=torch.bool)
    lead_mask[0, [STANDARD_LEADS.index(lead) for lead in ("V1", "V2")]] = False
    lead_mask[1] = False
    inputs = {"signal": torch.randn(B, 12, T, generator=generator), "lead_mask": lead_mask}
    if padded:
        inputs["valid_samples"] = torch.tensor([T, T, 93, 3, T, T])
    return inputs


def encoder(attention: str, dtype: torch.dtype = torch.float64, **model) -> EcgEncoder:
    torch.manual_seed(0)
    values = {"size": "tiny", "width": 16, "depth": 2, "heads": 2, "embedding_dim": 8, "attention": attention, **model}
    return create_encoder(small_config(encoder=values).encoder, SPEC).to(dtype)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pooling", ["attention", "resample"])
def test_packed_equals_dense_in_value_and_in_every_gradient(pooling: str, padded: bool) -> None:
    direction = torch.randn(B, 8, generator=torch.Generator().manual_seed(2))
    results = []
    for attention in ("dense", "packed"):
        model = encoder(attention, pooling=pooling, drop_path=0.3).train()
        torch.manual_seed(5)  # drop path draws the same sequences
        output = model(**batch(padded))
        (output.embedding * direction).sum().backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (dense, dense_grads), (packed, packed_grads) = results
    torch.testing.assert_close(packed.embedding, dense.embedding, rtol=0, atol=1e-6)  # the projection ends in float32
    torch.testing.assert_close(packed.features, dense.features, rtol=0, atol=1e-12)
    torch.testing.assert_close(packed.group_weights, dense.group_weights, rtol=0, atol=1e-6)
    assert packed_grads.keys() == dense_grads.keys()
    for name, gradient in dense_grads.items():
        assert gradient is not None and packed_grads[name] is not None, name
        torch.testing.assert_close(packed_grads[name], gradient, rtol=0, atol=1e-6)


def test_packed_leaves_out_what_dense_computes_for_nothing() -> None:
    inputs = batch()
    with torch.no_grad():
        dense, packed = (
            encoder(attention).eval()(**inputs, return_tokens=True).tokens for attention in ("dense", "packed")
        )
    assert dense is not None and packed is not None
    start = 0
    for tokens in (40, 20, 10):  # of a lead group at each scale
        septal = slice(start + 2 * tokens, start + 3 * tokens)  # of record 0
        assert float(packed[0, septal].abs().max()) == 0 < float(dense[0, septal].abs().max())
        start += 4 * tokens
    assert start == dense.shape[1]
    torch.testing.assert_close(packed[4:], dense[4:], rtol=0, atol=1e-12)


def test_a_batch_in_which_nothing_can_be_read_still_reaches_every_parameter() -> None:
    model = encoder("packed")
    inputs = batch()
    inputs["lead_mask"] = torch.zeros(B, 12, dtype=torch.bool)
    model(**inputs).embedding.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_short_run_has_the_same_losses() -> None:
    inputs = {
        **batch(),
        "text_embedding": torch.nn.functional.normalize(
            torch.randn(B, 384, generator=torch.Generator().manual_seed(3)), dim=1
        ),
    }
    known = {"report_key": torch.arange(B), "similarity": inputs["text_embedding"]}
    losses: dict[str, list[float]] = {}
    for attention in ("dense", "packed"):
        config = small_config()
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"attention": attention})})
        torch.manual_seed(0)
        model = create_method(config, SPEC)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses[attention] = []
        for _ in range(5):
            loss = model.loss(model(inputs), known, None).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[attention].append(float(loss.detach()))
    assert losses["packed"] == pytest.approx(losses["dense"], abs=1e-5)
    assert losses["dense"][-1] < losses["dense"][0] - 0.05


@pytest.mark.slow
def test_a_traced_encoder_does_not_depend_on_what_was_missing() -> None:
    program = EmbeddingProgram(encoder("packed", torch.float32, depth=1)).eval()
    inputs = batch()
    with torch.no_grad():
        traced = torch.export.export(program, tuple(inputs.values())).module()
        fewer = {**inputs, "lead_mask": torch.ones_like(inputs["lead_mask"])}
        for each in (inputs, fewer):
            given = traced(*each.values())
            torch.testing.assert_close(given, program(*each.values()), rtol=0, atol=1e-6, equal_nan=True)
            assert given.isnan().any(dim=1).tolist() == (~each["lead_mask"].any(dim=1)).tolist()
