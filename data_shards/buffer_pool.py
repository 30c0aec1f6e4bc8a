"""Batch buffers that are used again once nobody looks at them: fresh memory of 15 MB a batch costs as much as a fifth of the decoding."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np


class _Lease:
    """Lends one block of memory to an array and everything derived from it (views, tensors); the last one gone, the block goes back to its pool."""

    def __init__(self, pool: BufferPool, block: np.ndarray) -> None:
        self._pool, self._block = pool, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._pool._free.append(self._block)


class BufferPool:
    """Hands out float32 arrays of one shape per record. Their content is undefined; keeping one, or a view of it, keeps it from being reused.

    At most `kept` blocks are held in reserve; more are allocated when the consumer holds on to many batches.
    """

    def __init__(self, kept: int) -> None:
        self._free: deque[np.ndarray] = deque(
            maxlen=kept
        )  # deque operations are atomic: leases end in any thread, even inside a collection
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        with self._lock:
            for _ in range(len(self._free)):
                block = self._free.popleft()
                if block.size == size:
                    break
                self._free.append(block)
            else:
                block = np.empty(size, dtype=np.float32)
        return np.asarray(_Lease(self, block)).reshape(shape)
