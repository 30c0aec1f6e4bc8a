"""Whether backend "auto" may take the Triton kernels.

A kernel is dispatched where a benchmark has shown it faster than what "auto" takes otherwise: our PyTorch
implementation that holds no whole matrix. That was measured on Hopper (`benchmarks/FIGURES_H100.md`); elsewhere the
kernels are proven in the interpreter and compiled for sm_80, and "auto" is PyTorch. CARDIALIGN_TRITON is
    not set         the kernels from the measured sizes on, on a GPU of a measured kind; PyTorch elsewhere
    0               PyTorch
    1               the kernels, wherever they can run
    FILE            what `cardialign bench kernels --write-dispatch FILE` found on a GPU of this name with this Triton:
                    the kernels from the size on from which they were faster, PyTorch below and on any other machine
`backend="triton"` asks for them by name.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Literal

import torch

OPT_IN = "CARDIALIGN_TRITON"

Operation = Literal["contrastive", "patch-embed", "rotary"]
Backend = Literal["auto", "torch", "triton"]
"""Who computes an operation that has Triton kernels: PyTorch or they, by name or as this module says."""


MEASURED: dict[tuple[int, int], dict[Operation, int]] = {
    (9, 0): {"contrastive": 1 << 22, "patch-embed": 1 << 20, "rotary": 1 << 24}
}
"""Compute capability -> operation -> scale (as `triton_by_default` has it) from which the kernels were faster.

Losses: 2,048 x 2,048 while other work ran beside, 8,192 x 8,192 alone. Patches: from one record of width 256 on. Rotary
turn: 256 x 50 tokens of 8 heads of 64; below, the host's launches take longer than either.
"""


def triton_by_default(
    operation: Operation | None = None, scale: int | None = None, device: torch.device | None = None
) -> bool:
    """True where "auto" may choose a Triton kernel in this process.

    scale: logits b x B of this rank, or elements of all tokens (rotary: of queries, keys and values). A caller that
    does not say what it runs gets True only where the variable is 1.
    Raises ValueError, naming the file and the remedy, for one that cannot be read.
    """
    setting = os.environ.get(OPT_IN, "")
    if setting in ("0", "1"):
        return setting == "1"
    if operation is None or scale is None or device is None or device.type != "cuda":
        return False
    if not setting:
        found = MEASURED.get(torch.cuda.get_device_capability(device), {}).get(operation)
        return found is not None and scale >= found
    table = _table(setting)
    if table["device"] != torch.cuda.get_device_name(device) or table["versions"]["triton"] != _triton_version():
        return False
    smallest = table["kernels_from"].get(operation)
    return smallest is not None and scale >= smallest


@functools.cache
def _table(path: str) -> dict[str, Any]:
    try:
        table = json.loads(Path(path).read_text())
        return {
            "device": str(table["device"]),
            "versions": dict(table["versions"]),
            "kernels_from": dict(table["kernels_from"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{OPT_IN}={path} is not a dispatch table ({error}); "
            "set it to 0, 1, or a file of `cardialign bench kernels --write-dispatch FILE`"
        ) from error


@functools.cache
def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
