"""Run functions where Triton kernels are interpreted on the CPU, or compiled on a GPU: one helper process of each kind.

Whether a kernel is compiled or interpreted is settled when it is imported, so the variable must be there before triton
is; the process of the tests itself stays free to compile. This module must import neither torch nor triton at the top:
the helper sets its environment first. In the GPU's helper new tensors are on the GPU; a batch that is drawn from a
generator of the CPU, the same numbers everywhere, goes through `here`.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

Run = Callable[..., Any]
"""function, *args -> what it returns in a helper."""

ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


GPU_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What torch.use_deterministic_algorithms asks for."""


def _start() -> None:
    os.environ.update(ENVIRONMENT)
    import numpy
    import torch

    from tests.support.kernels import interpreter_bf16

    torch.set_num_threads(1)
    numpy.seterr(all="ignore")  # log2(0) and the like are meant: the hardware is silent about them too
    interpreter_bf16.install()


def _start_on_gpu() -> None:
    os.environ.update(GPU_ENVIRONMENT)
    import torch

    torch.set_default_device("cuda")


@functools.cache
def _helper(start: Callable[[], None]) -> ProcessPoolExecutor:
    # spawn: a fork of this process might have imported triton already
    helper = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start)
    atexit.register(helper.shutdown, cancel_futures=True)
    return helper


def interpreted(function: Callable[..., Any], *args: Any, deadline: float = 120.0) -> Any:
    """function(*args) in the helper; function at module level, args and result picklable. What it raises comes back."""
    return _run(_start, function, *args, deadline=deadline)


def compiled(function: Callable[..., Any], *args: Any, deadline: float = 120.0) -> Any:
    """The same on a GPU, which must be there."""
    return _run(_start_on_gpu, function, *args, deadline=deadline)


def _run(start: Callable[[], None], function: Callable[..., Any], *args: Any, deadline: float) -> Any:
    try:
        return _helper(start).submit(function, *args).result(timeout=deadline)
    except BrokenProcessPool:
        # A kernel read beyond the end of the process: that is this test's failure, not that of all after it.
        _helper.cache_clear()
        raise


def here(tensor: Any) -> Any:
    """The tensor on the device where new ones are."""
    import torch

    return tensor.to(torch.get_default_device())


SHIPPED: dict[str, Any] = {}
"""The limits of a launch as they are without `limit_launches`."""


def limit_launches(programs: int | None) -> None:
    """Small limits for the loss kernels, so that a small batch has several launches, spans and blocks.

    None: as shipped. Call it in the helper.
    """
    from cardialign.kernels.contrastive.triton import gradients as backward
    from cardialign.kernels.contrastive.triton import sums as forward

    if not SHIPPED:
        SHIPPED.update(forward=forward.PROGRAMS, backward=backward.PROGRAMS)
        SHIPPED.update(bytes=forward.PARTIAL_BYTES, sides=backward.BLOCK_SIDES)
    forward.PROGRAMS, backward.PROGRAMS = programs or SHIPPED["forward"], programs or SHIPPED["backward"]
    forward.PARTIAL_BYTES = 0 if programs else SHIPPED["bytes"]
    backward.BLOCK_SIDES = (64, 64) if programs else SHIPPED["sides"]
