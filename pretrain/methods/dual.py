"""Both towers and the temperature: what DeepSpeed wraps and what the objective reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.encoders.cardialign import EcgEncoder
from cardialign.pretrain.text.tower import TextTower


class _ClampInward(torch.autograd.Function):
    """Clamp whose gradient still passes at a bound when a descent step would lead back inside (a plain clamp would freeze there for ever)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((value >= high) & (gradient < 0)) | ((value <= low) & (gradient > 0))
        return torch.where(outward, torch.zeros_like(gradient), gradient), None, None


class LogitScale(nn.Module):
    """log(1/temperature), learnable, shape (1,) (DeepSpeed refuses 0-dimensional parameters), clamped to the temperature bounds of the recipe."""

    def __init__(self, temperature: float, low: float, high: float, learn: bool) -> None:
        super().__init__()
        self.bounds = (math.log(1.0 / high), math.log(1.0 / low))
        self.log_scale = nn.Parameter(torch.tensor([math.log(1.0 / temperature)]), requires_grad=learn)

    def forward(self) -> Tensor:
        return _ClampInward.apply(self.log_scale.float(), *self.bounds)


def signal_inputs(signal: Tensor, lead_mask: Tensor, valid_samples: Tensor) -> dict[str, Tensor]:
    """Stream batch -> model inputs, on the CPU, before the copy to the device. `valid_samples` is left out when no record is padded:
    the model then needs no key masks. The decision is made here because in `forward` it would wait for the device."""
    inputs = {"signal": signal, "lead_mask": lead_mask}
    if int(valid_samples.min()) < signal.shape[-1]:
        inputs["valid_samples"] = valid_samples
    return inputs


class DualEncoder(nn.Module):
    """ECG encoder, text tower and temperature of one run. Weights come from torch's global generator: seed it with `config.seed` first."""

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__()
        objective = config.objective
        self.ecg = EcgEncoder(config.model, spec.sampling_rate, spec.samples, config.data.normalisation)
        self.text = TextTower(config.text, config.model.embedding_dim)
        self.logit_scale = LogitScale(
            objective.temperature, objective.temperature_min, objective.temperature_max, objective.learn_temperature
        )

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: signal (b, 12, T) mV, lead_mask bool (b, 12), valid_samples int (b,) unless no record is padded (`signal_inputs`), and
        text_embedding (b, d) from the bank or token_ids (b, N) with token_mask bool (b, N).
        Returns ecg and text float32 (b, embedding_dim), unit vectors; log_scale (1,); group_weights (b, G)."""
        ecg = self.ecg(batch["signal"], batch["lead_mask"], batch.get("valid_samples"))
        text = self.text(batch.get("text_embedding"), batch.get("token_ids"), batch.get("token_mask"))
        return {"ecg": ecg.embedding, "text": text, "log_scale": self.logit_scale(), "group_weights": ecg.group_weights}
