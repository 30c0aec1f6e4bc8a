"""Gradient caching: the loss sees every row of the global batch while the encoders see one micro-batch at a time.

Two passes (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): encode every micro-batch without a graph,
take the gradient of the global loss at the features, then encode again with a graph and back-propagate <feature, its gradient>.
When the local batch is one micro-batch, the first pass is the second one and nothing is encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cardialign.pretrain.training.engine import BatchPlan

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, Any]]]


class _RandomState:
    """Random numbers of one micro-batch, so that dropout draws the same masks in both passes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def _rows(inputs: Tensors, rows: slice) -> dict[str, torch.Tensor]:
    """One micro-batch. An empty slice becomes row 0, whose features are dropped: every rank must run the same collectives."""
    part = rows if rows.stop > rows.start else slice(0, 1)
    return {name: tensor[part] for name, tensor in inputs.items()}


def _is_shared(feature: torch.Tensor) -> bool:
    """Features of rank 2 belong to rows; those of rank 1 (log_scale) belong to the whole batch."""
    return feature.ndim < 2


def _leaves(outputs: list[dict[str, torch.Tensor]], slices: list[slice]) -> dict[str, torch.Tensor]:
    """Joined float32 copies of the micro-batches' features, free of any graph, ready to receive a gradient."""
    leaves = {}
    for name, first in outputs[0].items():
        if _is_shared(first):
            joined = first.detach().clone()
        else:
            joined = torch.cat([o[name].detach()[: s.stop - s.start] for o, s in zip(outputs, slices, strict=True)])
        leaves[name] = joined.float().requires_grad_()
    return leaves


def _surrogate(
    outputs: Tensors, gradients: Mapping[str, torch.Tensor | None], rows: slice, world_size: int, *, first: bool
) -> torch.Tensor:
    """Scalar whose gradient, averaged over ranks by DeepSpeed, is the exact gradient of the global loss for this micro-batch.

    Row features carry d(global loss)/d(local row): a sum over ranks, so x world_size before the average. Shared features carry the global gradient
    on every rank already; it is counted once per step. The zero terms keep every parameter in every backward.
    """
    total = torch.zeros((), device=next(iter(outputs.values())).device)
    for name, feature in outputs.items():
        if not feature.requires_grad:
            continue
        gradient = gradients.get(name)
        size = rows.stop - rows.start
        if gradient is None or (not _is_shared(feature) and size == 0) or (_is_shared(feature) and not first):
            total = total + feature.float().sum() * 0.0
        elif _is_shared(feature):
            total = total + (feature.float() * gradient).sum()
        else:
            total = total + (feature.float() * gradient[rows]).sum() * world_size
    return total


@dataclass(frozen=True)
class CachedStep:
    """loss (0-dim, of the global batch), the objective's metrics, and the features of the local rows, all detached."""

    loss: torch.Tensor
    metrics: dict[str, Any]
    features: dict[str, torch.Tensor]


def accumulate_gradients(engine: Any, inputs: Tensors, loss: Loss, plan: BatchPlan) -> CachedStep:
    """Leave the gradient of the global loss in the engine, one `engine.step()` away from the update.

    inputs  tensors with the local rows (b, ...) first, at least one row; the engine is called with one such dict per micro-batch and returns a dict of
            features (b, ...) and shared values (1,).
    loss    features -> (global loss, metrics); its gradients must be exact for the local rows (not x world size) and global for shared values.
    """
    device = engine.device
    world_size = dist.get_world_size()
    local_rows = len(next(iter(inputs.values())))
    slices = plan.slices(local_rows)
    two_pass = plan.micro_batches > 1
    states: list[_RandomState] = []
    outputs: list[dict[str, torch.Tensor]] = []
    for rows in slices:
        states.append(_RandomState(device))
        with torch.set_grad_enabled(not two_pass):
            if not two_pass:
                engine.set_gradient_accumulation_boundary(True)
            outputs.append(dict(engine(_rows(inputs, rows))))
    leaves = _leaves(outputs, slices)
    with torch.enable_grad():
        value, metrics = loss(leaves)
    names = [name for name, leaf in leaves.items()]
    found = torch.autograd.grad(value, [leaves[name] for name in names], allow_unused=True)
    gradients = dict(zip(names, found, strict=True))
    for k, rows in enumerate(slices):
        if two_pass:
            engine.set_gradient_accumulation_boundary(k == len(slices) - 1)
            states[k].restore()
            output = dict(engine(_rows(inputs, rows)))
        else:
            output = outputs[0]
        # DeepSpeed's division by the accumulation count is switched off: these are parts of one sum, not of a mean.
        engine.backward(_surrogate(output, gradients, rows, world_size, first=k == 0), scale_wrt_gas=False)
    return CachedStep(value.detach(), metrics, {name: leaf.detach() for name, leaf in leaves.items()})
