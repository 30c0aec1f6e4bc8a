"""Benchmark of the contrastive losses in one process: the tiled path beside the full matrix, eager and compiled, and beside a ClipLoss.

The baselines are what one would write: the paper's formula on the whole matrix (contrastive_reference), the same through torch.compile, and for
InfoNCE the plain loss of CLIP on gathered features, which weighs nothing and reads no similarity. Where the matrix is too large for the
machine only the tiled path is measured.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import contrastive
from kernels import contrastive_reference as reference
from kernels.benchmark import Job, Work, measure
from kernels.contrastive import NegativeWeights, Similarity, SoftTargets

WEIGHTS = NegativeWeights("ramp", low=0.3, high=0.8)
TARGETS = SoftTargets("ramp", low=0.3, high=0.8)
FULL_MATRIX_BATCH = 8192
"""Largest batch at which the whole matrix is tried: float32 and its gradient take about 1.3 GB there, and 20 GB at four times that."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Similarity], Tensor]
"""(ecg (B, d), text (B, d), log_scale (1,), bias (1,), similarity) -> loss."""


def _tiled(loss: str, backend: Any) -> Loss:
    return {
        "weighted": lambda v, t, s, b, S: contrastive.weighted_infonce(v, t, s, S, WEIGHTS, backend=backend).loss,
        "soft": lambda v, t, s, b, S: contrastive.soft_target_infonce(v, t, s, S, TARGETS, backend=backend),
        "siglip": lambda v, t, s, b, S: contrastive.siglip(v, t, s, b, S, TARGETS),
    }[loss]


def _eager(loss: str) -> Loss:
    return {
        "weighted": lambda v, t, s, b, S: reference.reference_infonce(v, t, s, S, WEIGHTS)[0],
        "soft": lambda v, t, s, b, S: reference.reference_soft_target_infonce(v, t, s, S, TARGETS),
        "siglip": lambda v, t, s, b, S: reference.reference_siglip(v, t, s, b, S, TARGETS),
    }[loss]


@functools.cache
def _compiled(loss: str) -> Loss:
    function: Loss = torch.compile(_eager(loss))
    return function


def _clip(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
    logits, own = s.exp() * (v @ t.T), torch.arange(len(v), device=v.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def job(implementation: str, device: torch.device, loss: str, batch: int, width: int, similarity_width: int, dtype: str = "float32") -> Job:
    """One loss on random unit rows. Raises ValueError, with the reason, for an implementation that cannot run on this machine."""
    generator = torch.Generator().manual_seed(0)

    def rows(columns: int) -> Tensor:
        return F.normalize(torch.randn(batch, columns, generator=generator), dim=1).to(device, getattr(torch, dtype))

    ecg, text = rows(width).requires_grad_(), rows(width).requires_grad_()
    log_scale = torch.tensor([math.log(1 / 0.07)], device=device, requires_grad=True)
    bias = torch.tensor([-10.0], device=device, requires_grad=loss == "siglip")
    similarity = Similarity("cosine", rows(similarity_width), torch.arange(batch, device=device))
    function = _function(implementation, device, loss)
    leaves = [ecg, text, log_scale, *([bias] if loss == "siglip" else [])]
    return Job(lambda: function(ecg, text, log_scale, bias, similarity), leaves)


def _function(implementation: str, device: torch.device, loss: str) -> Loss:
    if implementation == "eager":
        return _eager(loss)
    if implementation == "compiled":
        if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise ValueError("torch.compile needs a C++ compiler on the CPU; install g++")
        return _compiled(loss)
    if implementation == "clip-loss":
        return _clip
    if implementation == "tiled":
        return _tiled(loss, "torch")
    if implementation == "triton":
        if contrastive.triton_blocks(device) is None:
            raise ValueError("the Triton tiles need a CUDA device of capability 8.0 or newer")
        return _tiled(loss, "triton")
    raise ValueError(f"unknown implementation {implementation!r}; use eager, compiled, clip-loss, tiled or triton")


def _work(batch: int, width: int, similarity_width: int) -> Work:
    """The least: forward one product each of embeddings and similarity features; backward both again and two products for the gradients."""
    pairs = 2.0 * batch * batch
    return Work(forward_flops=pairs * (width + similarity_width), both_flops=pairs * (4 * width + 2 * similarity_width))


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Rows for `cardialign bench kernels`; see kernels.benchmark.row. quick: small batches, neither torch.compile nor memory."""
    cuda = device.type == "cuda"
    width, similarity_width, dtype = (512, 128, "bfloat16") if cuda else (256, 128, "float32")
    largest = 65536 if cuda else 32768
    sizes = [512] if quick else [2048, FULL_MATRIX_BATCH, largest]
    cases = [("weighted", batch) for batch in sizes] + [(loss, 512 if quick else 4096) for loss in ("soft", "siglip")]
    found: list[dict[str, Any]] = []
    for loss, batch in cases:
        size = {"loss": loss, "batch": batch, "width": width, "similarity_width": similarity_width, "dtype": dtype}
        full = ["eager", *([] if quick else ["compiled"]), *(["clip-loss"] if loss == "weighted" else [])]
        found += measure(
            "contrastive",
            "kernels.benchmark_contrastive:job",
            [*(full if batch <= FULL_MATRIX_BATCH else []), "tiled", *(["triton"] if loss != "siglip" else [])],
            size,
            device,
            work=_work(batch, width, similarity_width),
            rounds=1 if batch > FULL_MATRIX_BATCH and not cuda else 3 if quick or not cuda else 15,
            shown=f"{loss} B={batch} d={width} d_s={similarity_width} {dtype}",
            warm_size={**size, "batch": 64},
            memory=not quick,
        )
    return found
