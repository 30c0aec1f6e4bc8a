"""Run functions where Triton kernels are interpreted on the CPU: one helper per session, with TRITON_INTERPRET=1.

Whether a kernel is compiled or interpreted is settled when it is imported, so the variable must be there before triton
is; the process of the tests itself stays free to compile. This module must import neither torch nor triton at the top:
the helper sets its environment first.
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

ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _start() -> None:
    os.environ.update(ENVIRONMENT)
    import numpy
    import torch

    from tests.support.kernels import interpreter_bf16

    torch.set_num_threads(1)
    numpy.seterr(all="ignore")  # log2(0) and the like are meant: the hardware is silent about them too
    interpreter_bf16.install()


@functools.cache
def _helper() -> ProcessPoolExecutor:
    # spawn: a fork of this process might have imported triton already
    helper = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(helper.shutdown, cancel_futures=True)
    return helper


def interpreted(function: Callable[..., Any], *args: Any, deadline: float = 120.0) -> Any:
    """function(*args) in the helper; function at module level, args and result picklable. What it raises comes back."""
    try:
        return _helper().submit(function, *args).result(timeout=deadline)
    except BrokenProcessPool:
        # A kernel read beyond the end of the process: that is this test's failure, not that of all after it.
        _helper.cache_clear()
        raise


def limit_launches(programs: int) -> None:
    """Small limits for the loss kernels, so that a small batch has several launches, spans and blocks.

    Call it in the helper.
    """
    from cardialign.kernels.contrastive.triton import gradients as backward
    from cardialign.kernels.contrastive.triton import sums as forward

    forward.PROGRAMS = backward.PROGRAMS = programs
    forward.PARTIAL_BYTES = 0
    backward.BLOCK_SIDE = 64
