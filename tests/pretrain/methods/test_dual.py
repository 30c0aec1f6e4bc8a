"""The two towers as one module: what goes in, what comes out.

And a temperature that stays inside its bounds but never gets stuck there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.methods.base import Method, create_method
from cardialign.pretrain.methods.parts.logit_scale import LogitScale
from cardialign.pretrain.methods.parts.two_towers import signal_inputs
from cardialign.pretrain.text.encoder import TextEncoder

SPEC = SignalSpec(sampling_rate=100, seconds=2)
TINY = {"size": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_dim": 8}


def make(**sections: Any) -> tuple[RunConfig, Method]:
    config = parse_config({"encoder": TINY, **sections})
    torch.manual_seed(config.seed)
    return config, create_method(config, SPEC)


def signal_part(b: int) -> dict[str, torch.Tensor]:
    return signal_inputs(
        torch.randn(b, 12, SPEC.samples), torch.ones(b, 12, dtype=torch.bool), torch.full((b,), SPEC.samples)
    )


def test_frozen_text_comes_from_the_bank() -> None:
    config, model = make()
    texts = torch.from_numpy(TextEncoder(config.text).embed(["Sinus rhythm", "Atrial fibrillation", "Normal ECG"]))
    out = model({**signal_part(3), "text_embedding": texts})
    assert out["ecg"].shape == out["text"].shape == (3, 8)
    torch.testing.assert_close(out["log_scale"], torch.tensor([math.log(1 / 0.07)]))
    (out["ecg"] * out["text"]).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "missing" not in n and "log_scale" not in n)


def test_trained_text_reads_token_ids() -> None:
    config, model = make(text={"trainable": "partial", "train_layers": 1, "max_tokens": 16})
    ids, lengths = TextEncoder(config.text).tokenize(["Sinus rhythm", "Atrial fibrillation"])
    mask = torch.arange(16)[None] < torch.from_numpy(lengths.astype(np.int64))[:, None]
    out = model({**signal_part(2), "token_ids": torch.from_numpy(ids), "token_mask": mask})
    out["text"].sum().backward()
    assert any("transformer" in n and p.grad is not None for n, p in model.named_parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    _, first = make(seed=7)
    _, second = make(seed=7)
    _, other = make(seed=8)
    states = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_no_parameter_is_zero_dimensional() -> None:
    assert [n for n, p in make()[1].named_parameters() if p.ndim == 0] == []  # DeepSpeed refuses them


def test_bfloat16_weights_give_float32_unit_vectors() -> None:
    _, model = make()
    model.bfloat16()
    out = model({**signal_part(3), "text_embedding": torch.randn(3, 384)})
    for name in ("ecg", "text"):
        assert out[name].dtype == torch.float32
        torch.testing.assert_close(out[name].norm(dim=-1), torch.ones(3))


def test_padded_batches_keep_their_lengths_and_full_ones_drop_them() -> None:
    signal, mask = torch.zeros(2, 12, 50), torch.ones(2, 12, dtype=torch.bool)
    assert "valid_samples" not in signal_inputs(signal, mask, torch.tensor([50, 50]))
    assert signal_inputs(signal, mask, torch.tensor([50, 49]))["valid_samples"].tolist() == [50, 49]


def test_temperature_is_clamped_and_can_come_back() -> None:
    scale = LogitScale(temperature=0.07, low=0.01, high=1.0, learn=True)
    for value, bound in ((10.0, math.log(100.0)), (-3.0, 0.0)):
        scale.log_scale.data.fill_(value)
        out = scale()
        torch.testing.assert_close(out.detach(), torch.tensor([bound]))
        outward, inward = (-1.0, 1.0) if value > 0 else (1.0, -1.0)  # a descent step moves against the gradient
        for gradient, passes in ((outward, False), (inward, True)):
            scale.log_scale.grad = None
            scale().backward(torch.tensor([gradient]))
            assert bool(scale.log_scale.grad.abs() > 0) == passes
    fixed = LogitScale(temperature=0.07, low=0.01, high=1.0, learn=False)
    assert not fixed().requires_grad
