"""Every loss of the family beside its full-matrix reference, on one batch that uses reports, duplicates and labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.contrastive import losses as tiled
from cardialign.kernels.contrastive import reference as plain
from cardialign.kernels.contrastive.losses import NegativeWeights, Similarity, SoftTargets
from tests.support.kernels.interpreter import here


@dataclass(frozen=True)
class Batch:
    """B pairs of width d; every tensor that has rows has B of them."""

    ecg: Tensor
    text: Tensor
    features: Tensor
    statements: Tensor
    key: Tensor
    aligned: Tensor
    log_scale: Tensor
    bias: Tensor

    @staticmethod
    def random(rows: int, width: int = 17, tau: float = 0.07, noise: float = 0.4, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return here(torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu"))

        def integers(low: int, high: int) -> Tensor:
            return here(torch.randint(low, high, (rows,), generator=generator, device="cpu"))

        def uniform(*shape: int) -> Tensor:
            return here(torch.rand(*shape, generator=generator, device="cpu"))

        ecg = F.normalize(normal(rows, width), dim=1)
        centres = normal(5, 9)
        centres = centres[integers(0, 5)]
        return Batch(
            ecg=ecg,
            text=F.normalize(ecg + noise * normal(rows, width), dim=1),
            features=F.normalize(centres + 0.6 * normal(rows, 9), dim=1),
            statements=(uniform(rows, 15) < 0.2).double(),
            key=integers(-1, rows // 2 + 1),
            aligned=uniform(rows) < 0.6,
            log_scale=torch.tensor([math.log(1 / tau)], dtype=torch.float64),
            bias=torch.tensor([-2.0], dtype=torch.float64),
        )

    def each(self, change: Callable[[str, Tensor], Tensor]) -> Batch:
        return replace(self, **{field.name: change(field.name, getattr(self, field.name)) for field in fields(self)})

    def to(self, dtype: torch.dtype) -> Batch:
        """Rows rounded to `dtype`; the two scalars stay float64 or become float32."""
        scalar = torch.float64 if dtype == torch.float64 else torch.float32
        kinds = {"key": torch.int64, "aligned": torch.bool, "log_scale": scalar, "bias": scalar}
        return self.each(lambda name, tensor: tensor.to(kinds.get(name, dtype)))

    def rows(self, rows: slice) -> Batch:
        return self.each(lambda name, tensor: tensor if name in ("log_scale", "bias") else tensor[rows].clone())

    def similarity(self, kind: str = "cosine") -> Similarity:
        reports = {"cosine": self.features, "jaccard": self.statements, "none": None}[kind]
        return Similarity(kind, reports, self.key)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Member:
    """tiled(batch, **options) and plain(batch) give the same loss.

    leaves: what it is differentiated by. gain: scale of the embeddings.
    """

    tiled: Callable[..., Tensor]
    plain: Callable[[Batch], Tensor]
    leaves: tuple[str, ...] = ("ecg", "text", "log_scale")
    gain: float = 1.0

    def prepare(self, batch: Batch) -> Batch:
        return replace(batch, ecg=batch.ecg * self.gain, text=batch.text * self.gain)

    def value_and_gradients(self, call: Callable[..., Tensor], batch: Batch, **options: Any) -> dict[str, Tensor]:
        """The loss as "loss" and its gradients by name."""
        leaves = {name: getattr(batch, name).clone().requires_grad_() for name in self.leaves}
        loss = call(replace(batch, **leaves), **options)
        loss.backward()
        return {"loss": loss.detach(), **{name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}}


def _weighted(weights: NegativeWeights, kind: str) -> Member:
    return Member(
        lambda b, **o: tiled.weighted_infonce(b.ecg, b.text, b.log_scale, b.similarity(kind), weights, **o).loss,
        lambda b: plain.reference_infonce(b.ecg, b.text, b.log_scale, b.similarity(kind), weights)[0],
    )


def _soft(targets: SoftTargets, kind: str) -> Member:
    return Member(
        lambda b, **o: tiled.soft_target_infonce(b.ecg, b.text, b.log_scale, b.similarity(kind), targets, **o),
        lambda b: plain.reference_soft_target_infonce(b.ecg, b.text, b.log_scale, b.similarity(kind), targets),
    )


def _siglip(targets: SoftTargets, kind: str) -> Member:
    return Member(
        lambda b, **o: tiled.siglip(b.ecg, b.text, b.log_scale, b.bias, b.similarity(kind), targets, **o),
        lambda b: plain.reference_siglip(b.ecg, b.text, b.log_scale, b.bias, b.similarity(kind), targets),
        ("ecg", "text", "log_scale", "bias"),
    )


def _mitigation(kind: str) -> Member:
    return Member(
        lambda b, **o: tiled.false_negative_mitigation(b.ecg, b.text, b.similarity(kind), **o),
        lambda b: plain.reference_false_negative_mitigation(b.ecg, b.text, b.similarity(kind)),
        ("ecg", "text"),
    )


def _plain_infonce(b: Batch) -> Tensor:
    logits, own = b.log_scale.exp() * (b.ecg @ b.text.T), torch.arange(len(b.ecg), device=b.ecg.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


FAMILY: dict[str, Member] = {
    "infonce": Member(lambda b, **o: tiled.infonce(b.ecg, b.text, b.log_scale, **o), _plain_infonce),
    "weighted-ramp": _weighted(NegativeWeights("ramp", low=0.2, high=0.8), "cosine"),
    "weighted-exponential": _weighted(NegativeWeights("exponential", low=0.1, high=0.7), "jaccard"),
    "soft-ramp": _soft(SoftTargets("ramp", low=-0.2, high=0.9, weight=0.7), "cosine"),
    "soft-sigmoid": _soft(SoftTargets("sigmoid", threshold=0.4, weight=0.3, match_duplicates=False), "cosine"),
    "soft-duplicates": _soft(SoftTargets("none"), "none"),
    "siglip": _siglip(SoftTargets("none", match_duplicates=False), "none"),
    "siglip-soft": _siglip(SoftTargets("ramp", low=0.1, high=0.7), "jaccard"),
    "ets": Member(
        lambda b, **o: tiled.ets(b.ecg, b.text, b.aligned, **o),
        lambda b: plain.reference_ets(b.ecg, b.text, b.aligned),
        ("ecg", "text"),
        gain=2.5,
    ),
    "false-negative-mitigation": _mitigation("cosine"),
    "false-negative-mitigation-statements": _mitigation("jaccard"),
}


def poison_uninitialised_memory(on: bool) -> None:
    """Uninitialised tensors hold NaN: whoever reads what nobody wrote is found out.

    What torch.use_deterministic_algorithms does, without its import of the compiler (seconds in every process).
    """
    torch._C._set_deterministic_algorithms(on, warn_only=False)
    assert not on or torch.empty(3).isnan().all()


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-300))
