"""Gradient caching: the loss sees every row of the global batch while the encoders see one micro-batch at a time.

Two passes (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): encode every
micro-batch without a graph, take the gradient of the global loss at the features, then encode again with a graph and
back-propagate <feature, its gradient>. When the local batch is one micro-batch, the first pass is the second one and
nothing is encoded twice. Nor is it where the loss is a mean of row losses whose counts are known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cardialign.pretrain.methods.base import StepLoss
from cardialign.pretrain.run.moves import moved
from cardialign.pretrain.training.engine import BatchPlan

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[dict[str, torch.Tensor]], StepLoss]


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
    """One micro-batch.

    An empty slice becomes row 0, whose features are dropped: every rank must run the same collectives.
    """
    part = rows if rows.stop > rows.start else slice(0, 1)
    return {name: tensor[part] for name, tensor in inputs.items()}


def _is_shared(feature: torch.Tensor) -> bool:
    """Features of rank 2 and more belong to rows; those of rank 1 (log_scale) belong to the whole batch."""
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
    """Scalar whose gradient, averaged over ranks by DeepSpeed,
    is the exact gradient of the global loss for this micro-batch.

    Row features carry d(global loss)/d(local row): a sum over ranks, so x world_size before the average. Shared
    features carry the global gradient on every rank already; it is counted once per step. The zero terms keep every
    parameter in every backward.
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


class CachedStep(NamedTuple):
    """What the method says of the step, detached, and the features of the local rows."""

    value: StepLoss
    features: dict[str, torch.Tensor]


def accumulate_gradients(
    engine: Any, inputs: Tensors, loss: Loss, plan: BatchPlan, counts: Tensors | None = None
) -> CachedStep:
    """Leave the gradient of the global loss in the engine, one `engine.step()` away from the update.

    inputs  tensors with the local rows (b, ...) first, at least one row; the engine is called with one such dict per
            micro-batch and returns a dict of features (b, ...) and shared values (1,).
    loss    features -> its value over the global batch; its gradients must be exact for the local rows (not x world
            size) and global for shared values.
    counts  `Method.counts`: the gradient at the (sum, count) features follows from the counts, so that one pass is
            enough.
    """
    slices = plan.slices(len(next(iter(inputs.values()))))
    if plan.micro_batches == 1:
        engine.set_gradient_accumulation_boundary(True)
        output = dict(engine(_rows(inputs, slices[0])))
        leaves = _leaves([output], slices)
        value, gradients = _gradients(loss, leaves)
        _backward(engine, output, gradients, slices, 0)
    elif counts is not None:
        _, gradients = _gradients(loss, _pairs(counts))
        outputs = []
        for k in range(len(slices)):
            output = _again(engine, inputs, slices, k)
            _backward(engine, output, gradients, slices, k)
            outputs.append({name: feature.detach() for name, feature in output.items()})
        leaves = _leaves(outputs, slices)
        with torch.no_grad():
            value = loss(leaves)
        for name, count in counts.items():
            assert torch.equal(leaves[name][:, 1], count.to(leaves[name])), (
                f"{name}: the counts do not follow from the inputs"
            )
    else:
        states, outputs = [], []
        with torch.no_grad():
            for rows in slices:
                states.append(_RandomState(engine.device))
                outputs.append(dict(engine(_rows(inputs, rows))))
                moved()
        leaves = _leaves(outputs, slices)
        value, gradients = _gradients(loss, leaves)
        for k, state in enumerate(states):
            state.restore()
            _backward(engine, _again(engine, inputs, slices, k), gradients, slices, k)
    detached = StepLoss(value.loss.detach(), value.metrics, value.chance)
    return CachedStep(detached, {name: leaf.detach() for name, leaf in leaves.items()})


def _pairs(counts: Tensors) -> dict[str, torch.Tensor]:
    """Leaves of row losses whose sums are not known yet: (0, count)."""
    return {
        name: torch.stack([torch.zeros_like(count), count], dim=1).float().requires_grad_()
        for name, count in counts.items()
    }


def _gradients(loss: Loss, leaves: dict[str, torch.Tensor]) -> tuple[StepLoss, dict[str, torch.Tensor | None]]:
    """The value at the leaves, and the gradient of the loss at each (None for one that it does not read)."""
    with torch.enable_grad():
        value = loss(leaves)
    found = torch.autograd.grad(value.loss, list(leaves.values()), allow_unused=True)
    return value, dict(zip(leaves, found, strict=True))


def _again(engine: Any, inputs: Tensors, slices: list[slice], k: int) -> dict[str, torch.Tensor]:
    """Micro-batch k with a graph."""
    engine.set_gradient_accumulation_boundary(k == len(slices) - 1)
    return dict(engine(_rows(inputs, slices[k])))


def _backward(
    engine: Any, output: Tensors, gradients: Mapping[str, torch.Tensor | None], slices: list[slice], k: int
) -> None:
    # DeepSpeed's division by the accumulation count is switched off: these are parts of one sum, not of a mean.
    surrogate = _surrogate(output, gradients, slices[k], dist.get_world_size(), first=k == 0)
    engine.backward(surrogate, scale_wrt_gas=False)
    moved()
