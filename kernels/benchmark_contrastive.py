"""Benchmark of the contrastive losses in one process: the tiled path beside the full matrix, eager and compiled, and beside a ClipLoss.

The baselines are what one would write: the paper's formula on the whole matrix (contrastive_reference), the same through torch.compile, and for
InfoNCE the plain loss of CLIP on gathered features, which weighs nothing and reads no similarity. Where the matrix is too large for the
machine only the tiled path is measured.
"share" is what one rank of many computes: its b rows against all B columns, with what other ranks would send made up beforehand; column sums stay
those of its own rows. No network is measured.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import contrastive
from kernels import contrastive_reference as reference
from kernels.benchmark import Job, Work, measure
from kernels.contrastive import NegativeWeights, Similarity, SoftTargets
from kernels.contrastive_ranks import Layout, Merge, Visit
from kernels.contrastive_softmax import SoftmaxLoss

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
        "siglip": lambda v, t, s, b, S: contrastive.siglip(v, t, s, b, S, TARGETS, backend=backend),
    }[loss]


def _eager(loss: str) -> Loss:
    return {
        "weighted": lambda v, t, s, b, S: reference.reference_infonce(v, t, s, S, WEIGHTS)[0],
        "soft": lambda v, t, s, b, S: reference.reference_soft_target_infonce(v, t, s, S, TARGETS),
        "siglip": lambda v, t, s, b, S: reference.reference_siglip(v, t, s, b, S, TARGETS),
    }[loss]


class _Share:
    """An exchange that has the columns of all other ranks at hand. Their column sums are infinite: no gradient comes from them."""

    def __init__(self, rows: int, others: Sequence[Tensor]) -> None:
        self.layout = Layout((rows, len(others[0])))
        self.others = others

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        missing = [tensor.new_full((self.layout.sizes[1],), math.inf) for tensor in mine[len(self.others) :]]
        found = visit([torch.cat(pair) for pair in zip(mine, [*self.others, *missing], strict=True)], 0)
        return [result[: self.layout.sizes[0]] for result in found]

    def total(self, value: Tensor) -> Tensor:
        return value


def _tiled_share(others: Sequence[Tensor], backend: Any) -> Loss:
    def loss(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
        share = _Share(len(v), others)
        blocks = contrastive.choose_blocks(backend, v.device, len(v) * share.layout.batch)
        value: Tensor = SoftmaxLoss.apply(v, t, s, S, WEIGHTS, None, share, blocks, 1024)[0]
        return value

    return loss


def _full_share(others: Sequence[Tensor]) -> Loss:
    def loss(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
        assert S.features is not None and S.duplicate_key is not None
        text, features, key = (torch.cat(pair) for pair in zip((t, S.features, S.duplicate_key), others, strict=True))
        logits = s.exp() * (v @ text.T)
        alpha = ((WEIGHTS.high - S.features @ features.T) / (WEIGHTS.high - WEIGHTS.low)).clamp(0, 1)
        alpha = alpha.masked_fill(S.duplicate_key[:, None] == key[None, :], 0).fill_diagonal_(1)
        weighted, own = logits + alpha.log(), logits.diagonal()
        both = torch.logsumexp(weighted, 1) + torch.logsumexp(weighted[:, : len(v)], 0) - 2 * own
        return both.sum() / (2 * len(text))

    return loss


@functools.cache
def _compiled(loss: str) -> Loss:
    function: Loss = torch.compile(_eager(loss))
    return function


def _clip(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
    logits, own = s.exp() * (v @ t.T), torch.arange(len(v), device=v.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def job(
    implementation: str,
    device: torch.device,
    loss: str,
    batch: int,
    width: int,
    similarity_width: int,
    dtype: str = "float32",
    columns: int = 0,
) -> Job:
    """One loss on random unit rows; columns: B of "share". Raises ValueError, with the reason, for what cannot run on this machine."""
    generator = torch.Generator().manual_seed(0)

    def rows(wide: int, count: int = batch) -> Tensor:
        return F.normalize(torch.randn(count, wide, generator=generator), dim=1).to(device, getattr(torch, dtype))

    ecg, text = rows(width).requires_grad_(), rows(width).requires_grad_()
    log_scale = torch.tensor([math.log(1 / 0.07)], device=device, requires_grad=True)
    bias = torch.tensor([-10.0], device=device, requires_grad=loss == "siglip")
    similarity = Similarity("cosine", rows(similarity_width), torch.arange(batch, device=device))
    others: list[Tensor] = []
    if loss == "share":
        rest = columns - batch
        others = [rows(width, rest), rows(similarity_width, rest), torch.arange(batch, columns, device=device)]
    function = _function(implementation, device, loss, others)
    leaves = [ecg, text, log_scale, *([bias] if loss == "siglip" else [])]
    return Job(lambda: function(ecg, text, log_scale, bias, similarity), leaves)


def _function(implementation: str, device: torch.device, loss: str, others: Sequence[Tensor]) -> Loss:
    if implementation == "eager":
        return _full_share(others) if loss == "share" else _eager(loss)
    if implementation == "compiled":
        if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise ValueError("torch.compile needs a C++ compiler on the CPU; install g++")
        function: Loss = torch.compile(_full_share(others)) if loss == "share" else _compiled(loss)
        return function
    if implementation == "clip-loss":
        return _clip
    if implementation == "tiled":
        return _tiled_share(others, "torch") if loss == "share" else _tiled(loss, "torch")
    if implementation == "triton":
        if contrastive.triton_blocks(device) is None:
            raise ValueError("the Triton tiles need a CUDA device of capability 8.0 or newer")
        return _tiled_share(others, "triton") if loss == "share" else _tiled(loss, "triton")
    raise ValueError(f"unknown implementation {implementation!r}; use eager, compiled, clip-loss, tiled or triton")


def _work(pairs: int, width: int, similarity_width: int) -> Work:
    """FLOPs of that many pairs. The least: forward one product each of embeddings and similarity features; backward both again and two products for the gradients."""
    return Work(2.0 * pairs * (width + similarity_width), 2.0 * pairs * (4 * width + 2 * similarity_width))


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Rows for `cardialign bench kernels`; see kernels.benchmark.row. quick: small batches, neither torch.compile nor memory."""
    cuda = device.type == "cuda"
    width, similarity_width, dtype = (512, 128, "bfloat16") if cuda else (256, 128, "float32")
    largest = 65536 if cuda else 32768
    sizes = [512] if quick else [2048, FULL_MATRIX_BATCH, largest]
    cases = [("weighted", batch) for batch in sizes] + [(loss, 512 if quick else 4096) for loss in ("soft", "siglip")]
    if not quick:
        cases.append(("share", 4096 if cuda else 1024))
    found: list[dict[str, Any]] = []
    for loss, batch in cases:
        size = {"loss": loss, "batch": batch, "width": width, "similarity_width": similarity_width, "dtype": dtype}
        across = batch
        if loss == "share":
            across = size["columns"] = 16 * batch
        full = ["eager", *([] if quick else ["compiled"]), *(["clip-loss"] if loss == "weighted" else [])]
        found += measure(
            "contrastive",
            "kernels.benchmark_contrastive:job",
            [*(full if batch <= FULL_MATRIX_BATCH else []), "tiled", "triton"],
            size,
            device,
            work=_work(batch * across, width, similarity_width),
            rounds=1 if batch > FULL_MATRIX_BATCH and not cuda else 3 if quick or not cuda else 15,
            shown=f"{loss} B={batch if across == batch else f'{batch} x {across}'} d={width} d_s={similarity_width} {dtype}",
            warm_size={**size, "batch": 64, **({"columns": 128} if loss == "share" else {})},
            memory=not quick,
        )
    return found
