"""What `cardialign bench kernels` measures of the patch embedding: the main recipe's lead groups and scales.

Forward and backward. Work is counted once for all implementations: the products of the convolutions forward, the same
again for the weight gradient, and every signal, token and token gradient moved once. The signal asks for no gradient,
as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cardialign.kernels.benchmarks.cases import Case, Work, words
from cardialign.kernels.benchmarks.timing import Job
from cardialign.kernels.patch_embed import PatchScaleParams, multi_scale_patch_embed, patch_embed_reference, token_count
from cardialign.kernels.patch_embed.embed import fused_here

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
GROUPS = ((0, 3, 4, 10, 11), (1, 2, 5), (6, 7), (8, 9))
LEADS = 12
SCALES = ((25, 12), (50, 25), (250, 125))
"""(kernel, stride) in samples: 50, 100 and 500 ms at 500 Hz."""
WARM = {"batch": 1, "samples": 250, "width": 128}
KERNELS = ("fused", "fused from int16")


def cases(device: torch.device, quick: bool) -> list[Case]:
    """10 s records at 500 Hz, shorter ones in a quick look. Baseline: the convolution as a user would write it."""
    cuda = device.type == "cuda"
    names: tuple[str, ...]
    if cuda:
        names = ("conv1d", "compiled conv1d", "unfold and linear", "compiled unfold", *KERNELS)
        widths = (256,) if quick else (128, 256, 512, 768, 1024)
        small = [] if quick else [{"batch": batch, "samples": 5000, "width": 256} for batch in (1, 16)]
        sizes = [*small, *({"batch": 256, "samples": 5000, "width": width} for width in widths)]
    elif quick:
        names = ("conv1d", "unfold and linear")
        sizes = [{"batch": 4, "samples": 1000, "width": 64}]
    else:
        names = ("conv1d", "compiled conv1d", "unfold and linear", "compiled unfold")
        sizes = [{"batch": 16, "samples": 5000, "width": width} for width in (128, 256)]
    return [
        Case(
            op="patch embedding",
            shown=words(size),
            implementations=names,
            size=size,
            build=patch_job,
            work=work(device, **size),
            warm_size=WARM,
            rounds=30 if cuda and not quick else 3 if quick else 9,
            seconds=10.0,
            memory=not quick,
            absent=dict.fromkeys(_left_out(device, size["width"]), "not run: compiling takes minutes on a CPU"),
            kernels=KERNELS,
            otherwise="unfold and linear",
            scale=token_elements(**size),
            dispatched=functools.partial(_dispatched, size),
        )
        for size in sizes
    ]


def _left_out(device: torch.device, width: int) -> tuple[str, ...]:
    """What is not compiled on a CPU.

    Twelve convolutions and their gradients are as many C++ programs: compiling all of them takes longer than the rest
    of the benchmark.
    """
    if device.type == "cuda":
        return ()
    return ("compiled conv1d",) if width == 128 else ("compiled conv1d", "compiled unfold")


def token_elements(batch: int, samples: int, width: int) -> int:
    """Elements of all tokens of one pass."""
    return batch * len(GROUPS) * sum(token_count(samples, kernel, stride) for kernel, stride in SCALES) * width


def _dispatched(size: dict[str, int], device: torch.device) -> str:
    scales = parameters(device, DTYPES[device.type], size["width"])
    signal = torch.empty(size["batch"], LEADS, size["samples"], device=device, dtype=DTYPES[device.type])
    return "fused" if fused_here(signal, scales) else "unfold and linear"


def work(device: torch.device, batch: int, samples: int, width: int) -> Work:
    """FLOPs and bytes of one pass, from the sizes alone."""
    products = sum(token_count(samples, kernel, stride) * kernel for kernel, stride in SCALES)
    flops = 2.0 * batch * width * sum(len(group) for group in GROUPS) * products
    element = DTYPES[device.type].itemsize
    signal, tokens = batch * LEADS * samples * element, token_elements(batch, samples, width) * element
    return Work(flops, 2 * flops, signal + tokens, 2 * signal + 2 * tokens)


def parameters(device: torch.device, dtype: torch.dtype, width: int) -> list[PatchScaleParams]:
    """Random parameters of every scale, the size of freshly initialised ones."""

    def normal(deviation: float, *shape: int) -> Tensor:
        return (deviation * torch.randn(*shape, device=device)).to(dtype).requires_grad_()

    groups = len(GROUPS)
    return [
        PatchScaleParams(
            kernel,
            stride,
            [normal((len(group) * kernel) ** -0.5, width, len(group), kernel) for group in GROUPS],
            normal(0.5, groups, width),
            normal(1.0, groups, width),
            normal(0.1, groups, width),
            normal(0.02, LEADS, width),
        )
        for kernel, stride in SCALES
    ]


def patch_job(implementation: str, device: torch.device, batch: int, samples: int, width: int) -> Job:
    """One of every eight records lacks a lead. Raises ValueError for what cannot run here (the fused kernels)."""
    torch.manual_seed(0)
    scales = parameters(device, DTYPES[device.type], width)
    leaves = [
        t for scale in scales for t in (*scale.weights, scale.bias, scale.ln_weight, scale.ln_bias, scale.missing)
    ]
    signal = torch.randn(batch, LEADS, samples, device=device)
    mask = torch.ones(batch, LEADS, dtype=torch.bool, device=device)
    mask[::8, 6] = False
    counts = (1000 * signal).to(torch.int16)
    gain = torch.full((LEADS,), 0.001, device=device)
    signal = signal.to(DTYPES[device.type])

    def conv1d() -> list[Tensor]:
        return patch_embed_reference(signal, mask, scales, GROUPS)

    def unfold() -> list[Tensor]:
        return multi_scale_patch_embed(signal, mask, scales, GROUPS, backend="torch")

    def fused() -> list[Tensor]:
        return multi_scale_patch_embed(signal, mask, scales, GROUPS, backend="triton")

    def fused_counts() -> list[Tensor]:
        return multi_scale_patch_embed(counts, mask, scales, GROUPS, gain=gain, backend="triton")

    if implementation.startswith("fused") and device.type != "cuda":
        raise ValueError("the fused kernels need CUDA")
    runs: dict[str, Callable[[], list[Tensor]]] = {
        "conv1d": conv1d,
        "unfold and linear": unfold,
        "fused": fused,
        "fused from int16": fused_counts,
    }
    if implementation.startswith("compiled"):
        run = conv1d if implementation == "compiled conv1d" else unfold
        return Job(torch.compile(run, dynamic=False), leaves, compiled=True)
    return Job(runs[implementation], leaves)
