"""A fit on one thread: on any machine, and in a worker of a cluster, the same sums in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """In this block the products of numpy, scipy and torch run on one thread. Several fits run beside each other
    faster than one on all cores, and their last bits do not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
