"""What `cardialign bench kernels` measures of the patch embedding: the main recipe's lead groups and scales, forward and backward.

Work is counted once for all implementations: the products of the convolutions forward, the same again for the weight gradient, and every signal,
token and token gradient moved once. The signal asks for no gradient, as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark import Job, Work, measure
from kernels.patch_embed import PatchScaleParams, multi_scale_patch_embed, patch_embed_reference, token_count

HERE = "kernels.benchmark_patch_embed"
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
GROUPS = ((0, 3, 4, 10, 11), (1, 2, 5), (6, 7), (8, 9))
LEADS = 12
SCALES = ((25, 12), (50, 25), (250, 125))
"""(kernel, stride) in samples: 50, 100 and 500 ms at 500 Hz."""
WARM = {"batch": 1, "samples": 250, "width": 16}


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """The rows of the table: 10 s records at 500 Hz on CUDA, shorter ones on the CPU. Baseline: the convolution as a user would write it."""
    if device.type == "cuda":
        names = ["conv1d", "compiled conv1d", "unfold and matmul", "compiled unfold", "fused", "fused from int16"]
        sizes = [{"batch": 256, "samples": 5000, "width": width} for width in ((256,) if quick else (128, 256, 512, 768, 1024))]
        rounds = 5 if quick else 30
    else:
        names = ["conv1d", *([] if quick else ["compiled conv1d"]), "unfold and matmul", *([] if quick else ["compiled unfold"]), "fused"]
        sizes = [{"batch": 4, "samples": 1000, "width": 64} if quick else {"batch": 16, "samples": 5000, "width": 128}]
        rounds = 3 if quick else 9
    found = []
    for size in sizes:
        found += measure(
            "patch embedding", f"{HERE}:patch_job", names, size, device, work=work(device, **size), rounds=rounds, warm_size=WARM, memory=not quick
        )  # fmt: skip
    return found


def work(device: torch.device, batch: int, samples: int, width: int) -> Work:
    """FLOPs and bytes of one pass, from the sizes alone."""
    counts = [token_count(samples, kernel, stride) for kernel, stride in SCALES]
    leads = sum(len(group) for group in GROUPS)
    flops = 2.0 * batch * width * leads * sum(count * kernel for count, (kernel, _) in zip(counts, SCALES, strict=True))
    element = DTYPES[device.type].itemsize
    signal, tokens = batch * LEADS * samples * element, batch * len(GROUPS) * sum(counts) * width * element
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
    """One of every eight records lacks a lead. Raises ValueError for what cannot run here (fused kernels, torch.compile)."""
    torch.manual_seed(0)
    scales = parameters(device, DTYPES[device.type], width)
    leaves = [t for scale in scales for t in (*scale.weights, scale.bias, scale.ln_weight, scale.ln_bias, scale.missing)]
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
        "unfold and matmul": unfold,
        "fused": fused,
        "fused from int16": fused_counts,
    }
    if implementation.startswith("compiled"):
        compiled = torch.compile(conv1d if implementation == "compiled conv1d" else unfold)
        try:
            compiled()
        except Exception as error:  # no C++ compiler, an unsupported Python: many types, one meaning
            raise ValueError(f"torch.compile does not work here: {str(error).strip().splitlines()[0]}") from error
        return Job(compiled, leaves)
    return Job(runs[implementation], leaves)
