"""Tiny invented methods that use everything a method may ask for, and the runs of the contract tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import MethodConfig, RunConfig, parse_config
from cardialign.pretrain.methods.base import Chance, Method, ReportBank, StepLoss, Tensors, Weights
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, batch_signals
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.loop import TrainResult, train
from tests.support.tiny_shards import config_for

WIDTH, SEGMENTS, QUEUE, CODES = 8, 5, 20, 4


def register() -> None:
    """The invented methods become names that a recipe may use, in this process: a worker's.

    A test that calls this in its own process does so in `monkeypatch.context()` with `METHODS.own` set.
    """
    where = "tests.support.invented:"
    METHODS.own = {**METHODS.own, "everything": f"{where}Everything", "rows": f"{where}RowsOnly"}


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order; autograd reaches this rank's own."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows.detach().cpu())
    parts[dist.get_rank()] = rows
    return torch.cat([part.to(rows.device) for part in parts])


class _Reversed(torch.autograd.Function):
    """Identity forward, the negative gradient backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def frozen_copy(module: nn.Module) -> nn.Module:
    """The module with buffers in place of its parameters: a teacher that ZeRO neither trains nor cuts up."""
    teacher = copy.deepcopy(module)
    for child in teacher.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach().clone())
    return teacher


class EverythingConfig(MethodConfig):
    name: str = "everything"
    momentum: float = 0.9


class Everything(TwoTowers):
    """Global contrast, row and token losses, views, segments, masks, exchanged texts,
    a teacher, a queue, a codebook, an adversary, batch statistics.
    """

    Config: ClassVar[type[MethodConfig]] = EverythingConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config.method, EverythingConfig)
        self.momentum = config.method.momentum
        width = config.encoder.embedding_dim
        self.student = nn.Sequential(nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.teacher = frozen_copy(self.student)
        self.decoder = nn.Linear(width, SEGMENTS)
        self.matcher = nn.Linear(2 * width, 1)
        self.adversary = nn.Linear(width, 12)
        self.register_buffer("queue", F.normalize(torch.randn(QUEUE, WIDTH), dim=-1))
        self.register_buffer("codes", F.normalize(torch.randn(CODES, WIDTH), dim=-1))
        self.seen: Tensor | None = None

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """Besides both towers': a second view with masked leads,
        the mask of segments, the text of another row, and its own text half masked.
        """
        assert bank is not None and batch.global_report is not None
        inputs = super().inputs(batch, bank, draws)
        other = draws.permutation("exchange", len(batch.global_rows))[draws.rows]
        shown = inputs["text_embedding"].clone()
        shown[torch.from_numpy(draws.chosen("text mask", shown.shape[1] // 2, shown.shape[1]))] = 0.0
        return {
            **inputs,
            "view_leads": inputs["lead_mask"] & torch.from_numpy(draws.uniform("leads", 12) < 0.7),
            "shift": torch.from_numpy(draws.integers("shift", 0, 50)),
            "masked": torch.from_numpy(draws.chosen("segments", 2, SEGMENTS))
            & torch.from_numpy(draws.uniform("keep", 1) < 0.8),
            "other_text": torch.from_numpy(bank.embedding(batch.global_report[other])),
            "masked_text": shown,
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        features = super().forward(inputs)
        signal, ecg, text = inputs["signal"], features["ecg"], features["text"]
        time = (torch.arange(signal.shape[-1], device=signal.device) + inputs["shift"][:, None]) % signal.shape[-1]
        view = torch.gather(signal, 2, time[:, None].expand_as(signal))
        seen = self.ecg(view, inputs["view_leads"]).embedding
        student, target = F.normalize(self.student(seen), dim=-1), F.normalize(self.teacher(ecg.detach()), dim=-1)
        wanted = signal[:, 1].unflatten(1, (SEGMENTS, -1)).mean(dim=-1)
        wrong = (self.decoder(seen) - wanted).square() * inputs["masked"]
        pair = torch.stack([text, self.text(inputs["other_text"])], dim=1)
        matched = self.matcher(torch.cat([ecg[:, None].expand_as(pair), pair], dim=-1)).squeeze(-1)
        answer = torch.tensor([1.0, 0.0], device=matched.device).expand_as(matched)
        asked = F.binary_cross_entropy_with_logits(matched, answer, reduction="none")
        told = F.binary_cross_entropy_with_logits(
            self.adversary(_Reversed.apply(seen)), inputs["view_leads"].float(), reduction="none"
        )
        ones = torch.ones(len(ecg), device=ecg.device)
        return {
            **features,
            "half_text": self.text(inputs["masked_text"]),
            "student": student,
            "target": target.detach(),
            "reconstruction": torch.stack([wrong.sum(1), inputs["masked"].sum(1).float()], dim=1),
            "matching": torch.stack([asked.sum(1), 2 * ones], dim=1),
            "adversary": torch.stack([told.sum(1), 12 * ones], dim=1),
        }

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        ecg, text, half, student, target = (
            gathered(features[n]) for n in ("ecg", "text", "half_text", "student", "target")
        )
        own = torch.arange(len(ecg), device=ecg.device)
        contrast = F.cross_entropy(10 * ecg @ text.T, own) + F.cross_entropy(10 * ecg @ half.T, own)
        against = torch.cat([(student * target).sum(dim=-1, keepdim=True), student @ self.queue.T], dim=1)
        distilled = F.cross_entropy(against / 0.2, torch.zeros_like(own))
        standard = (student - student.mean(0)) / student.std(0)  # statistics over the records of the global batch
        whitened = ((standard.T @ standard) / len(standard) - torch.eye(WIDTH, device=ecg.device)).square().mean()
        rows = {name: mean_over_batch(features[name], group) for name in ("reconstruction", "matching", "adversary")}
        total = contrast + distilled + whitened + torch.stack(list(rows.values())).sum()
        self.seen = target.detach()
        return StepLoss(total, {name: value.detach() for name, value in rows.items()}, Chance(1e9, "a billion"))

    def learning_rates(self, step: int) -> Mapping[str, float]:
        """The adversary learns fast, every other step only."""
        return {"adversary.": 3.0 * ((step + 1) % 2), "text.": 0.5}

    def after_update(self, step: int, weights: Weights) -> None:
        new = weights("student.")
        for name, buffer in self.teacher.named_buffers():
            buffer.lerp_(new[name].to(buffer), 1 - self.momentum)
        assert self.seen is not None
        self.queue.copy_(torch.cat([self.seen, self.queue])[:QUEUE])
        nearest = (self.seen @ self.codes.T).argmax(dim=1)
        for code in range(CODES):
            if (nearest == code).any():
                self.codes[code].lerp_(self.seen[nearest == code].mean(0), 0.1)


class RowsConfig(MethodConfig):
    name: str = "rows"
    passes: int = 1


class RowsOnly(Method):
    """A mean over all masked segments of the batch, of records that need no report.

    `passes: 2` hides that the counts follow from the inputs.
    """

    Config: ClassVar[type[MethodConfig]] = RowsConfig
    reports: ClassVar[bool] = False

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config.method, RowsConfig)
        self.passes = config.method.passes
        self.decoder = nn.Linear(config.encoder.embedding_dim, SEGMENTS)
        self.encoded = 0

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is None
        masked = draws.uniform("masked", SEGMENTS) < draws.uniform("share", 1)
        return {**batch_signals(batch), "masked": torch.from_numpy(masked)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        self.encoded += len(inputs["signal"])
        found = self.decoder(self.ecg(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")).embedding)
        wanted = inputs["signal"][:, 1].unflatten(1, (SEGMENTS, -1)).mean(dim=-1)
        wrong = (found - wanted).square() * inputs["masked"]
        return {"errors": torch.stack([wrong.sum(1), inputs["masked"].sum(1).float()], dim=1)}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        return StepLoss(mean_over_batch(features["errors"], group), {"encoded": torch.tensor(float(self.encoded))})

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors | None:
        return {"errors": inputs["masked"].sum(1).float()} if self.passes == 1 else None


def invented_config(shards: Path, method: dict[str, Any], **training: Any) -> RunConfig:
    register()
    values = config_for(shards, **training).resolved()
    return parse_config({**values, "method": method})


def run(
    shards: Path, run_dir: Path, method: dict[str, Any], *, stop_after: int | None = None, **training: Any
) -> TrainResult:
    """Train on this rank; `stop_after` asks for a stop before that many further steps."""

    class Patience(NullObserver):
        asked = 0

        def should_stop(self) -> bool:
            self.asked += 1
            return stop_after is not None and self.asked > stop_after

    return train(invented_config(shards, method, **training), run_dir, Patience())


def trace(run_dir: Path, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def state(result: TrainResult) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_weights(result.checkpoint).items()}
