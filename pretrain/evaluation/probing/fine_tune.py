"""Fine-tuning with labels, and training from scratch with labels alone: the same loop from other weights.

The epoch with the best macro AUROC of the validation records is kept; the test records are scored once, with it.
Legend: B batch, n records, C classes, T samples.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Fraction, Strict
from cardialign.pretrain.config.load import set_dotted
from cardialign.pretrain.config.sentences import sentences
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.encoders.blocks.age_film import AgeFilm, scaled_age
from cardialign.pretrain.evaluation.probing.linear_probe import Learnable, Parts, unseen_classes
from cardialign.pretrain.evaluation.scoring import decided_at
from cardialign.pretrain.evaluation.windows import is_used, starts

log = logging.getLogger(__name__)

Reader = Callable[[np.ndarray], Iterator[Batch]]
"""Places of records, in the order they are wanted -> their batches."""


class FineTuneOptions(Strict):
    """How it is trained.

    lr, weight_decay   AdamW; the rate falls to 0 along a cosine after `warmup` (a share of the steps).
    layer_decay        factor of the rate per layer below the head; 1 = one rate for all.
    train_blocks       only the last so many blocks train, and what follows them; null = everything.
    epochs, patience   at most so many; stop after so many without a better validation figure.
    crop_seconds       train on random pieces of this length, score the mean over pieces side by side; null = whole.
    crop_average       of the pieces' log odds ("features": the head is linear) or of their probabilities.
    dropout            in front of the head.
    age_gate           where the age of the patient has a say, from no say at first: "encoder", behind every block of an
                       encoder that has room for gates; "head", on the log odds alone; "none", or as the encoder has it.
    """

    lr: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    train_blocks: Annotated[int, Field(ge=0, le=1000)] | None = None
    epochs: Annotated[int, Field(gt=0, le=10_000)] = 30
    patience: Annotated[int, Field(gt=0, le=10_000)] = 5
    warmup: Fraction = 0.1
    batch_size: Annotated[int, Field(gt=0, le=65_536)] = 64
    crop_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    crop_average: Literal["features", "probabilities"] = "features"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    age_gate: Literal["none", "head", "encoder"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


PRESETS: dict[str, tuple[dict[str, object] | None, FineTuneOptions]] = {
    "full": (None, FineTuneOptions(lr=3e-4, layer_decay=0.75, weight_decay=0.05)),
    "partial": (None, FineTuneOptions(lr=3e-4, train_blocks=1, weight_decay=0.05)),
    "supervised-s4": ({"name": "s4"}, FineTuneOptions(crop_seconds=2.5, dropout=0.2, epochs=50, patience=10)),
    "supervised-resnet1d": ({"name": "resnet1d"}, FineTuneOptions(weight_decay=0.01, epochs=50, patience=10)),
}
"""Name -> the encoder that starts from random weights (None: the one that is given), and how it is trained.

Crops of 2.5 s, averaged, are how S4 was published on PTB-XL (Mehari & Strodthoff 2022).
"""


def parse_options(preset: str, assignments: Sequence[str]) -> FineTuneOptions:
    """A preset's options with `key=value` changes. Raises UsageError that names every mistake."""
    values: dict[str, Any] = PRESETS[preset][1].model_dump()
    for assignment in assignments:
        set_dotted(values, assignment)
    try:
        return FineTuneOptions.model_validate(values)
    except ValidationError as error:
        lines = sentences(error, FineTuneOptions, {})
        raise UsageError(
            f"--preset {preset}:\n" + "\n".join(f"  - {line}" for line in lines), "correct them and run again"
        ) from None


@dataclass
class FineTuned:
    """scores float64 (test records, C), log odds, all the same for a class that training cannot show (`unseen`, as of
    a linear probe); history: validation macro AUROC per epoch; the best one, from 1."""

    scores: np.ndarray
    history: list[float] = field(default_factory=list)
    best_epoch: int = 0
    unseen: tuple[int, ...] = ()


class Classifier(nn.Module):
    """An encoder's features, dropout, one linear map: (B, C) log odds, which an age gate of their own may modulate."""

    def __init__(self, encoder: EcgEncoder, classes: int, dropout: float, age_gate: bool = False) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.head = nn.Linear(encoder.feature_width, classes)
        self.age_gate = AgeFilm(classes) if age_gate else None

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor, age_years: Tensor | None = None
    ) -> Tensor:
        """age_years float (B,), NaN where it is not known: for an encoder that reads it, others never see it."""
        padded = bool(valid_samples.min() < signal.shape[-1])
        age = {"age": age_years} if self.encoder.reads_age and age_years is not None else {}
        features = self.encoder(signal, lead_mask, valid_samples if padded else None, **age).features
        odds = self.head(self.dropout(features.float()))
        if self.age_gate is None or age_years is None:
            return odds
        return self.age_gate(odds, scaled_age(age_years))


def classifier(encoder: EcgEncoder, classes: int, options: FineTuneOptions) -> Classifier:
    """A copy of the encoder, gated where the options say so, and a new head. Raises UserError as `EcgEncoder.gated`."""
    own = encoder.gated() if options.age_gate == "encoder" else copy.deepcopy(encoder)
    return Classifier(own, classes, options.dropout, options.age_gate == "head")


def _blocks_of(encoder: nn.Module) -> dict[str, int]:
    """Name of every parameter in a block -> its layer, i + 1 in block i."""
    listed = re.escape(str(getattr(encoder, "block_list", "blocks")))
    block = re.compile(rf"\b{listed}\.(\d+)\.")
    names = [name for name, _ in encoder.named_parameters()]
    return {name: int(found.group(1)) + 1 for name in names if (found := block.search(name))}


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """Parameter name -> layer: 0 before the first block, i + 1 in block i, blocks + 1 behind the last.

    An encoder keeps its repeated layers in the list that its `block_list` names ("blocks" where it says nothing), and
    defines its parts in the order the signal takes.
    """
    names, of_block = [name for name, _ in encoder.named_parameters()], _blocks_of(encoder)
    first = min((names.index(name) for name in of_block), default=len(names))
    behind = max(of_block.values(), default=0) + 1
    return {name: of_block.get(name, 0 if at < first else behind) for at, name in enumerate(names)}


def parameter_groups(model: Classifier, options: FineTuneOptions) -> list[dict[str, object]]:
    """Optimizer groups by layer and by decay; what does not train is frozen here and in none of them.

    Biases, norms and other vectors do not decay.
    """
    layers, of_block = layers_of(model.encoder), _blocks_of(model.encoder)
    behind = max(of_block.values(), default=0) + 1  # also where nothing is behind the last block
    head = behind + 1
    if options.train_blocks is not None and not of_block:
        raise UserError(
            f"train_blocks is {options.train_blocks}, and the encoder does not say which of its layers are its blocks",
            "name their list under `blocks` in its signal contract, or train all of it: --set train_blocks=null",
        )
    first = 0 if options.train_blocks is None else behind - options.train_blocks
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("encoder.")
        layer = head if inner == name else layers[inner]
        parameter.requires_grad_(layer >= first and not inner.startswith("projection."))
        if parameter.requires_grad:
            groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.lr * options.layer_decay ** (head - layer),
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def fine_tune(
    encoder: EcgEncoder,
    read: Reader,
    truth: np.ndarray,
    parts: Parts,
    options: FineTuneOptions,
    device: torch.device | str = "cpu",
    decided: np.ndarray | None = None,
) -> FineTuned:
    """Train a copy of the encoder and a new head on the training records; the encoder given stays as it is.

    truth bool (n, C); decided bool (n, C), None = all: the loss of a class, and the choice of the epoch, are over these
    records. Raises ValueError when no class is in training and in validation, UserError when it diverges.
    """
    known = Learnable.of(truth, parts, decided, parts.train)
    labels = _Labels(truth, decided)
    draw = np.random.default_rng([options.seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = classifier(encoder, truth.shape[1], options).to(device)
        optimizer = torch.optim.AdamW(parameter_groups(model, options))  # type: ignore[arg-type]
        steps = -(-len(parts.train) // options.batch_size) * options.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(steps, options.warmup))
        found, best = FineTuned(np.empty(0)), model.state_dict()
        for epoch in range(1, options.epochs + 1):
            _epoch(model, optimizer, schedule, read, labels, draw.permutation(parts.train), options, draw)
            scores = score(model, read, parts.validation, options.crop_seconds, options.crop_average)
            if not np.isfinite(scores).all():
                raise UserError(
                    f"training diverged: after epoch {epoch} the scores are not finite",
                    f"lower the rate: --set lr={options.lr / 3:.1g}",
                )
            found.history.append(known.macro(scores[:, known.learnt], parts.validation))
            log.info("fine_tune epoch=%d validation=%.4f", epoch, found.history[-1])
            if found.history[-1] > max(found.history[:-1], default=-1.0):
                found.best_epoch, best = epoch, copy.deepcopy(model.state_dict())
            if epoch - found.best_epoch >= options.patience:
                break
        model.load_state_dict(best)
        found.scores = score(model, read, parts.test, options.crop_seconds, options.crop_average)
        found.unseen = unseen_classes(known.learnt, truth.shape[1])
        found.scores[:, list(found.unseen)] = 0.0
    return found


@dataclass(frozen=True)
class _Labels:
    """truth bool (n, C); decided bool (n, C), None = all."""

    truth: np.ndarray
    decided: np.ndarray | None

    def loss(self, logits: Tensor, rows: np.ndarray) -> Tensor:
        """Binary cross-entropy of logits (B, C), the mean over the records and classes that are decided."""
        wanted = torch.from_numpy(self.truth[rows]).float().to(logits.device)
        decided = decided_at(self.decided, rows)
        if decided is None or decided.all():
            return F.binary_cross_entropy_with_logits(logits, wanted)
        known = torch.from_numpy(decided).float().to(logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, weight=known, reduction="sum")
        return losses / known.sum().clamp(min=1)


def _rate(steps: int, warmup: float) -> Callable[[int], float]:
    ramp = int(np.ceil(warmup * steps))

    def factor(step: int) -> float:
        if step < ramp:
            return (step + 1) / ramp
        return 0.5 * (1 + float(np.cos(np.pi * (step - ramp) / max(1, steps - ramp))))

    return factor


def _epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    read: Reader,
    labels: _Labels,
    order: np.ndarray,
    options: FineTuneOptions,
    draw: np.random.Generator,
) -> None:
    model.train()
    at, device = 0, model.head.weight.device
    for batch in read(order):
        rows = order[at : at + len(batch.rows)]
        at += len(rows)
        signal, valid = torch.from_numpy(batch.signal), torch.from_numpy(batch.valid_samples.astype(np.int64))
        if options.crop_seconds is not None:
            signal, valid = random_crop(signal, valid, _samples(model, options.crop_seconds), draw)
        leads, age = torch.from_numpy(batch.lead_mask), torch.from_numpy(batch.age_years)
        logits = model(signal.to(device), leads.to(device), valid.to(device), age.to(device))
        loss = labels.loss(logits, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _samples(model: Classifier, seconds: float) -> int:
    return max(1, round(seconds * model.encoder.sampling_rate))


def random_crop(signal: Tensor, valid: Tensor, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A piece of `length` samples of each record, anywhere within what was recorded: (B, 12, length), int (B,)."""
    if length >= signal.shape[-1]:
        return signal, valid
    starts = torch.from_numpy(
        np.floor(draw.random(len(signal)) * (valid.numpy() - length + 1).clip(1)).astype(np.int64)
    )
    places = starts[:, None] + torch.arange(length)
    cut = torch.gather(signal, 2, places[:, None].expand(-1, signal.shape[1], -1))
    return cut, (valid - starts).clamp(max=length)


@torch.inference_mode()
def score(
    model: Classifier, read: Reader, rows: np.ndarray, crop_seconds: float | None, average: str = "features"
) -> np.ndarray:
    """Log odds float64 (m, C) of the rows in their order; with crops the mean over whole pieces (`windows.is_used`).

    average "probabilities": of the pieces' probabilities, not of their log odds.
    """
    model.eval()
    device, out = model.head.weight.device, []
    for batch in read(rows):
        signal = torch.from_numpy(batch.signal).to(device)
        leads = torch.from_numpy(batch.lead_mask).to(device)
        valid = torch.from_numpy(batch.valid_samples.astype(np.int64)).to(device)
        age = torch.from_numpy(batch.age_years).to(device)
        T = signal.shape[-1]
        length = T if crop_seconds is None else min(T, _samples(model, crop_seconds))
        total = torch.zeros(len(signal), model.head.out_features, device=device)
        counted = torch.zeros(len(signal), 1, device=device)
        for start in starts(T, length):
            inside = (valid - start).clamp(0, length)
            used = torch.from_numpy(is_used(batch.valid_samples, start, length))[:, None].float().to(device)
            piece = model(signal[..., start : start + length], leads, inside, age)
            if average == "probabilities" and crop_seconds is not None:
                piece = piece.sigmoid()
            total, counted = total + used * piece, counted + used
        out.append((total / counted).double().cpu().numpy())
    return np.concatenate(out)
