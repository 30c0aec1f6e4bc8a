"""A buffer is reused when, and only when, nothing refers to its memory any more."""

from __future__ import annotations

import gc

import numpy as np
import torch

from data_shards.buffer_pool import BufferPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_the_array_is_gone() -> None:
    pool = BufferPool(2)
    first = pool.take((4, 12, 500))
    assert first.shape == (4, 12, 500) and first.dtype == np.float32 and first.flags.writeable
    where = address(first)
    other = pool.take((4, 12, 500))
    assert address(other) != where
    del first
    gc.collect()
    assert address(pool.take((4, 12, 500))) == where


def test_a_view_or_a_tensor_keeps_the_memory_from_being_reused() -> None:
    for derive in (lambda a: a[1:, :, ::2], lambda a: torch.from_numpy(a), lambda a: a.reshape(-1)[3:7], lambda a: memoryview(a)):
        pool = BufferPool(4)
        array = pool.take((3, 2, 8))
        array[:] = 7
        derived = derive(array)
        where = address(array)
        del array
        gc.collect()
        others = [pool.take((3, 2, 8)) for _ in range(3)]
        for other in others:
            other[:] = -1
        assert where not in map(address, others)
        assert (np.asarray(derived) == 7).all()


def test_another_shape_gets_memory_of_its_own_and_the_reserve_is_bounded() -> None:
    pool = BufferPool(2)
    held = [pool.take((5,)) for _ in range(6)]
    del held
    gc.collect()
    assert len(pool._free) == 2
    assert pool.take((9,)).shape == (9,)
    assert pool.take((0, 12, 5)).shape == (0, 12, 5)
