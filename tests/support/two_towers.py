"""A small real two-tower model, its full-matrix InfoNCE, and the training steps that tests run on every rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from cardialign.data_shards.order.contract import local_slice
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.base import StepLoss
from cardialign.pretrain.training import engine as engines
from cardialign.pretrain.training.checkpoints.judge import Facts
from cardialign.pretrain.training.checkpoints.load import find_resume_point, load_checkpoint, seed_random
from cardialign.pretrain.training.checkpoints.save import save_checkpoint
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.gradient_cache import Loss, accumulate_gradients

GLOBAL_BATCH = 25
STEPS = 4


class TwoTowers(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.ecg = nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8))
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "ecg": _unit(self.ecg(batch["x"])),
            "text": _unit(self.text(batch["y"])),
            "log_scale": self.log_scale * 1.0,
        }


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.float() if rows.dtype == torch.bfloat16 else rows, dim=1)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(STEPS, GLOBAL_BATCH, 20, generator=generator), torch.randn(
        STEPS, GLOBAL_BATCH, 12, generator=generator
    )


def infonce(ecg: torch.Tensor, text: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    logits = ecg @ text.T * log_scale.exp()
    target = torch.arange(len(ecg))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def gathered_infonce(features: dict[str, torch.Tensor]) -> StepLoss:
    """Full-matrix loss on every rank.

    Autograd reaches the local rows and, because log_scale enters the whole matrix, its global gradient.
    """

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, tensor.detach().numpy())
        tensors = [torch.from_numpy(part) for part in parts]
        tensors[dist.get_rank()] = tensor
        return torch.cat(tensors)

    return StepLoss(infonce(gather(features["ecg"]), gather(features["text"]), features["log_scale"]), {})


def tiled_infonce(scheme: str) -> Callable[[dict[str, torch.Tensor]], StepLoss]:
    """The product's loss over ranks by `scheme`, without weights on negatives: InfoNCE."""
    everyone = NegativeWeights("none", drop_duplicates=False)

    def loss(features: dict[str, torch.Tensor]) -> StepLoss:
        unlike = Similarity("none", None, torch.arange(len(features["ecg"])))
        ecg, text, log_scale = features["ecg"], features["text"], features["log_scale"]
        return StepLoss(
            weighted_infonce(ecg, text, log_scale, unlike, everyone, Execution(chunk=4, scheme=scheme)).loss, {}
        )

    return loss


def settings(stage: int, micro_batch: int | None, **training: Any):
    return parse_config(
        {
            "optimizer": {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 0.5},
            "training": {
                "global_batch": GLOBAL_BATCH,
                "micro_batch": micro_batch,
                "steps": STEPS,
                "zero_stage": stage,
                "precision": "fp32",
                **training,
            },
        }
    )


def reference(
    dropout: float = 0.0, micro_batch: int = GLOBAL_BATCH, world: int = 1
) -> tuple[list[float], list[float], np.ndarray]:
    """One process, plain torch in float64, one graph over the whole batch.

    Returns loss and gradient norm per step, and the weights after STEPS steps. With dropout the batch is encoded in the
    pieces of the plan, rank by rank, so that the masks are drawn in the same order; the masks themselves are those of
    float32 tensors, which is what the engine draws.
    """
    torch.manual_seed(0)
    model = TwoTowers(dropout)
    if not dropout:
        model = model.double()
    config = settings(0, None).optimizer
    optimizer = engines.make_optimizer(model, config, torch.device("cpu"))
    xs, ys = (t.to(next(model.parameters()).dtype) for t in data())
    plan = engines.plan_batches(GLOBAL_BATCH, world, micro_batch)
    losses, norms = [], []
    for step in range(STEPS):
        features = []
        for rank in range(world):
            torch.manual_seed(step)
            local = local_slice(GLOBAL_BATCH, rank, world)
            x, y = xs[step][local], ys[step][local]
            features += [model({"x": x[rows], "y": y[rows]}) for rows in plan.slices(len(x))]
        loss = infonce(
            torch.cat([f["ecg"] for f in features]), torch.cat([f["text"] for f in features]), features[0]["log_scale"]
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, flat_weights(model.state_dict())


def flat_weights(state: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([state[name].detach().double().numpy().ravel() for name in sorted(state)])


def train_engine(
    stage: int, micro_batch: int | None, dropout: float = 0.0, loss: Loss = gathered_infonce, **training: Any
) -> dict[str, Any]:
    """STEPS steps through the engine on this rank: trace of losses and gradient norms, and the gathered weights."""
    workers = engines.start_workers()
    torch.manual_seed(0)
    config = settings(stage, micro_batch, **training)
    plan = engines.plan_batches(GLOBAL_BATCH, workers.world_size, micro_batch)
    engine = engines.make_engine(config, TwoTowers(dropout), plan, workers.device)
    xs, ys = data()
    local = local_slice(GLOBAL_BATCH, workers.rank, workers.world_size)
    losses, norms = [], []
    for step in range(STEPS):
        torch.manual_seed(step)
        value = accumulate_gradients(engine, {"x": xs[step][local], "y": ys[step][local]}, loss, plan).value.loss
        norms.append(engines.optimizer_step(engine))
        losses.append(value.item())
    return {"losses": losses, "norms": norms, "weights": flat_weights(engines.full_weights(engine))}


def train_with_checkpoints(
    run_dir: Path, stage: int, upto: int, micro_batch: int | None, dropout: float = 0.0, frozen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Continue from the newest checkpoint under run_dir (or start), train to step `upto`, checkpoint there.

    frozen: beginnings of the names of parameters that do not train. Returns the losses of this leg.
    """
    workers = engines.start_workers()
    config = settings(stage, micro_batch)
    plan = engines.plan_batches(GLOBAL_BATCH, workers.world_size, micro_batch)
    torch.manual_seed(0)
    model = TwoTowers(dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    point = find_resume_point(run_dir, config, Facts("selection", GLOBAL_BATCH, 1), workers)
    engine = engines.make_engine(config, model, plan, workers.device, universal=point is not None and point.universal)
    start = 0
    seed_random(config.seed, workers.rank, 0)
    if point is not None:
        load_checkpoint(engine, point, workers)
        start = point.state.step
    xs, ys = data()
    local = local_slice(GLOBAL_BATCH, workers.rank, workers.world_size)
    losses = []
    for step in range(start, upto):
        k = step % STEPS
        engines.set_learning_rate(engine, 1e-2 / (step + 1))
        loss = accumulate_gradients(engine, {"x": xs[k][local], "y": ys[k][local]}, gathered_infonce, plan).value.loss
        engines.optimizer_step(engine)
        losses.append(loss.item())
    state = TrainerState(upto, "digest", json.loads(json.dumps(config.resolved())), "selection", workers.world_size, 1)
    path = save_checkpoint(engine, run_dir, state, workers, keep=2)
    return {"start": start, "losses": losses, "path": str(path), "weights": flat_weights(engines.full_weights(engine))}
