"""What `cardialign bench kernels` measures of the contrastive losses.

The tiles beside the full matrix, eager and compiled, and beside a ClipLoss. The baselines are what one would write: the
paper's formula on the whole matrix (`reference`), the same through torch.compile, and the plain loss of CLIP on
gathered features, which weighs nothing and reads no similarity. Beside the two losses that public packages compute
without a matrix, those packages where they are installed: inf_cl (InfoNCE in float32) and siglip-kernel (SigLIP).
"share" is the weighted loss as one rank of many computes it: its b rows against all B columns, with what other ranks
would send made up beforehand; column sums stay those of its own rows, no network.
"""

from __future__ import annotations

import functools
import importlib
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels import contrastive
from cardialign.kernels.benchmarks.cases import Case, Work
from cardialign.kernels.benchmarks.timing import Job
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, SoftTargets, reference
from cardialign.kernels.contrastive.exchange import Layout, Merge, Visit
from cardialign.kernels.contrastive.plan import TORCH, Plan, choose_blocks
from cardialign.kernels.contrastive.softmax import SoftmaxLoss
from cardialign.kernels.contrastive.triton.backend import available
from cardialign.kernels.dispatch import Backend

NAMES = {
    "weighted": "weighted",
    "infonce": "InfoNCE",
    "soft": "soft targets",
    "siglip": "SigLIP",
    "sigmoid": "SigLIP, one positive,",
    "ets": "ETS",
    "fnm": "false-negative mitigation",
    "share": "weighted, one rank's share,",
}
LOSSES = tuple(name for name in NAMES if name not in ("share", "sigmoid"))
"""The family; "sigmoid" is SigLIP as published, without the similarity of reports.

ETS is un-normalised in training, here it gets unit rows like the others."""

POINTWISE = ("siglip", "sigmoid", "ets", "fnm")
WITHOUT_SIMILARITY = ("infonce", "sigmoid", "ets")
WITH_BIAS = ("siglip", "sigmoid")
PACKAGES = {"inf-cl": "inf_cl", "siglip-kernel": "siglip_kernel"}
"""Public implementation -> its module."""
WEIGHTS = NegativeWeights("ramp", low=0.3, high=0.8)
TARGETS = SoftTargets("ramp", low=0.3, high=0.8)
ONE_POSITIVE = SoftTargets("none", match_duplicates=False)

NAIVE_BYTES_PER_LOGIT = 24
"""Of the weighted loss on the whole float32 matrix, as its row at 8,192 measures it.

1.6 GB there, sixteen times that at 32,768.
"""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Similarity], Tensor]
"""(ecg (B, d), text (B, d), log_scale (1,), bias (1,), similarity) -> loss."""


def _tiled(loss: str, backend: Backend) -> Loss:
    how = Execution(backend=backend)
    losses: dict[str, Loss] = {
        "weighted": lambda v, t, s, b, S: contrastive.weighted_infonce(v, t, s, S, WEIGHTS, how).loss,
        "infonce": lambda v, t, s, b, S: contrastive.infonce(v, t, s, how),
        "soft": lambda v, t, s, b, S: contrastive.soft_target_infonce(v, t, s, S, TARGETS, how),
        "siglip": lambda v, t, s, b, S: contrastive.siglip(v, t, s, b, S, TARGETS, how),
        "sigmoid": lambda v, t, s, b, S: contrastive.siglip(v, t, s, b, S, ONE_POSITIVE, how),
        "ets": lambda v, t, s, b, S: contrastive.ets(v, t, None, how),
        "fnm": lambda v, t, s, b, S: contrastive.false_negative_mitigation(v, t, S, how),
    }
    return losses[loss]


def _eager(loss: str) -> Loss:
    losses: dict[str, Loss] = {
        "weighted": lambda v, t, s, b, S: reference.reference_infonce(v, t, s, S, WEIGHTS)[0],
        "infonce": _clip,
        "soft": lambda v, t, s, b, S: reference.reference_soft_target_infonce(v, t, s, S, TARGETS),
        "siglip": lambda v, t, s, b, S: reference.reference_siglip(v, t, s, b, S, TARGETS),
        "sigmoid": lambda v, t, s, b, S: reference.reference_siglip(v, t, s, b, S, ONE_POSITIVE),
        "ets": lambda v, t, s, b, S: reference.reference_ets(
            v, t, torch.ones(len(v), dtype=torch.bool, device=v.device)
        ),
        "fnm": lambda v, t, s, b, S: reference.reference_false_negative_mitigation(v, t, S),
    }
    return losses[loss]


class _Share:
    """An exchange that has the columns of all other ranks at hand.

    Their column sums are infinite: no gradient comes from them.
    """

    def __init__(self, rows: int, others: Sequence[Tensor]) -> None:
        self.layout = Layout((rows, len(others[0])))
        self.others = others

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        missing = [tensor.new_full((self.layout.sizes[1],), math.inf) for tensor in mine[len(self.others) :]]
        found = visit([torch.cat(pair) for pair in zip(mine, [*self.others, *missing], strict=True)], 0)
        return [result[: self.layout.sizes[0]] for result in found]

    def total(self, value: Tensor) -> Tensor:
        return value


def _tiled_share(others: Sequence[Tensor], backend: Backend) -> Loss:
    def loss(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
        share = _Share(len(v), others)
        plan = Plan(share, choose_blocks(backend, v.device, len(v) * share.layout.batch), chunk=1024)
        value: Tensor = SoftmaxLoss.apply(v, t, s, S, WEIGHTS, None, plan)[0]
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
    function: Loss = torch.compile(_eager(loss), dynamic=False)
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
    """One loss on random unit rows; columns: B of "share".

    Raises ValueError, with the reason, for what cannot run on this machine.
    """
    generator = torch.Generator().manual_seed(0)

    def rows(wide: int, count: int = batch) -> Tensor:
        return F.normalize(torch.randn(count, wide, generator=generator), dim=1).to(device, getattr(torch, dtype))

    ecg, text = rows(width).requires_grad_(), rows(width).requires_grad_()
    log_scale = torch.tensor([math.log(1 / 0.07)], device=device, requires_grad=True)
    bias = torch.tensor([-10.0], device=device, requires_grad=loss in WITH_BIAS)
    similarity = Similarity("cosine", rows(similarity_width), torch.arange(batch, device=device))
    others: list[Tensor] = []
    if loss == "share":
        rest = columns - batch
        others = [rows(width, rest), rows(similarity_width, rest), torch.arange(batch, columns, device=device)]
    function = _function(implementation, device, loss, others)
    leaves = [ecg, text, *([] if loss in ("ets", "fnm") else [log_scale]), *([bias] if loss in WITH_BIAS else [])]
    return Job(lambda: function(ecg, text, log_scale, bias, similarity), leaves, compiled=implementation == "compiled")


def _function(implementation: str, device: torch.device, loss: str, others: Sequence[Tensor]) -> Loss:
    if implementation == "eager":
        return _full_share(others) if loss == "share" else _eager(loss)
    if implementation == "compiled":
        if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise ValueError("torch.compile needs a C++ compiler on the CPU; install g++")
        function: Loss = torch.compile(_full_share(others), dynamic=False) if loss == "share" else _compiled(loss)
        return function
    if implementation == "clip-loss":
        return _clip
    if implementation in PACKAGES:
        return _public(implementation)
    if implementation == "tiled":
        return _tiled_share(others, "torch") if loss == "share" else _tiled(loss, "torch")
    if implementation == "triton":
        if not available(device):
            raise ValueError("the Triton tiles need a CUDA device of capability 8.0 or newer")
        return _tiled_share(others, "triton") if loss == "share" else _tiled(loss, "triton")
    known = ", ".join(("eager", "compiled", "clip-loss", "tiled", "triton", *PACKAGES))
    raise ValueError(f"unknown implementation {implementation!r}; choose from {known}")


def _public(implementation: str) -> Loss:
    """Raises ValueError where the package is not installed."""
    try:
        package = importlib.import_module(PACKAGES[implementation])
    except ImportError as error:
        raise ValueError(f"the package {implementation} is not installed ({error})") from error

    def both_ways(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
        scale = s.exp()
        pairs: Tensor = package.cal_flash_loss(v, t, scale=scale) + package.cal_flash_loss(t, v, scale=scale)
        return pairs.mean() / 2

    def pairwise(v: Tensor, t: Tensor, s: Tensor, b: Tensor, S: Similarity) -> Tensor:
        loss: Tensor = package.fused_siglip_loss(v, t, s[0], b[0])
        return loss

    return both_ways if implementation == "inf-cl" else pairwise


def _work(loss: str, batch: int, columns: int, width: int, similarity_width: int, dtype: str) -> Work:
    """The least work of batch x columns pairs without a matrix kept between the passes.

    FLOPs of the matrix products: forward one product each of embeddings and similarity features; backward both again
    and two products for the gradients. A pointwise loss needs no sum over a row before its gradient: the products once,
    and the two for the gradients.
    Bytes, every operand once: embeddings and features, in the backward pass again, and the gradients of the embeddings.
    A loss is bound by its products: the share of a copy is small by nature.
    """
    pairs, similar = batch * columns, 0 if loss in WITHOUT_SIMILARITY else similarity_width
    once = 2.0 * pairs * (width + similar)
    element = getattr(torch, dtype).itemsize
    operands, gradients = (
        float((batch + columns) * (width + similar) * element),
        float((batch + columns) * width * element),
    )
    flops = once + 4.0 * pairs * width if loss in POINTWISE else 2 * once + 4.0 * pairs * width
    return Work(once, flops, operands, 2 * operands + gradients)


def _dispatched(logits: int) -> Callable[[torch.device], str]:
    def choose(device: torch.device) -> str:
        return "tiled" if choose_blocks("auto", device, logits) is TORCH else "triton"

    return choose


def _case(
    loss: str, batch: int, names: Sequence[str], device: torch.device, quick: bool, *, columns: int = 0, **changes: Any
) -> Case:
    width, similarity_width, dtype = (512, 128, "bfloat16") if device.type == "cuda" else (256, 128, "float32")
    width = changes.pop("width", width)
    size: dict[str, Any] = {
        "loss": loss,
        "batch": batch,
        "width": width,
        "similarity_width": similarity_width,
        "dtype": dtype,
    }
    warm = {**size, "batch": 64}
    if columns:
        size["columns"], warm["columns"] = columns, 128
    else:
        columns = batch
    cuda = device.type == "cuda"
    similar = "" if loss in WITHOUT_SIMILARITY else f" d_s={similarity_width}"
    return Case(
        op="contrastive",
        shown=f"{NAMES[loss]} {batch:,} x {columns:,} d={width}{similar} {dtype}",
        implementations=(*names, "tiled", *(["triton"] if cuda else [])),
        size=size,
        build=job,
        work=_work(loss, batch, columns, width, similarity_width, dtype),
        warm_size=warm,
        memory=not quick,
        kernels=("triton",),
        otherwise="tiled",
        scale=batch * columns,
        dispatched=_dispatched(batch * columns),
        **{"rounds": 3 if quick else 30 if cuda else 5, **changes},
    )


def _packages(loss: str) -> list[str]:
    return {"infonce": ["inf-cl"], "sigmoid": ["siglip-kernel"]}.get(loss, [])


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Every loss of the family, the weighted one also at the sizes for which memory and time are promised.

    quick: no torch.compile, small batches.
    """
    case = functools.partial(_case, device=device, quick=quick)
    if quick:
        batch = 2048 if device.type == "cuda" else 256
        return [case(loss, batch, ["eager", "clip-loss"] if loss == "weighted" else ["eager"]) for loss in LOSSES]
    full = ["eager", "compiled"]
    if device.type == "cuda":
        too_large = f"not run: one float32 matrix is {4 * 65536**2 / 1e9:.0f} GB, and it keeps several"
        return [
            case("weighted", 8192, [*full, "clip-loss"], width=256),
            *(case(loss, 8192, [*full, *_packages(loss)]) for loss in (*LOSSES, "sigmoid")),
            case("share", 4096, full, columns=65536),
            *(
                case(loss, 65536, [*full, *_packages(loss)], absent=dict.fromkeys(full, too_large))
                for loss in ("weighted", "infonce", "sigmoid")
            ),
        ]
    large = 32768
    naive = f"not run: its matrices would take about {NAIVE_BYTES_PER_LOGIT * large**2 / 1e9:.0f} GB"
    return [
        case("weighted", 8192, [*full, "clip-loss"], rounds=2, seconds=30.0),
        *(case(loss, 4096, ["eager"], seconds=6.0) for loss in LOSSES[1:]),
        case("share", 1024, full, columns=16384, seconds=10.0),
        case("weighted", large, ["eager"], absent={"eager": naive}, rounds=1, warmup=0),
    ]
