"""A sorted list of rows under one digest: that a row is in it, or that none lies between two of its neighbours, is
shown by one or two of its blocks and the digests beside their ways up.

Version 1. A block is BLOCK rows, the last one fewer. A leaf is sha256(0, block), a node sha256(1, left, right); of an
odd number the last goes up as it is. The digest of no rows is sha256(2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 32
"""Rows of a block."""


class Tree:
    """Over uint8 (n, ROW)."""

    def __init__(self, rows: np.ndarray) -> None:
        content = rows.tobytes()
        step = BLOCK * (rows.shape[1] if len(rows) else 1)
        leaves = [_leaf(content[at : at + step]) for at in range(0, len(content), step)]
        self._levels = [leaves]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))

    @property
    def root(self) -> str:
        return (self._levels[-1][0] if self._levels[0] else _nothing()).hex()

    def way(self, block: int) -> list[str]:
        """The digests beside the way of a block to the top."""
        found, at = [], block
        for level in self._levels[:-1]:
            if (beside := at ^ 1) < len(level):
                found.append(level[beside].hex())
            at //= 2
        return found


def blocks_of(count: int) -> int:
    """How many blocks so many rows make."""
    return -(-count // BLOCK)


def root_over(content: bytes, block: int, count: int, way: Sequence[str]) -> str:
    """The digest of a list of `count` rows that holds this block at this place. Raises ValueError for a way of another
    length than such a list has."""
    digest, at, width, left = _leaf(content), block, blocks_of(count), list(way)
    if not 0 <= block < width:
        raise ValueError(f"a list of {count} rows has no block {block}")
    while width > 1:
        if at ^ 1 < width:
            if not left:
                raise ValueError("its way to the root is cut short")
            beside = bytes.fromhex(left.pop(0))
            digest = _node(beside, digest) if at & 1 else _node(digest, beside)
        at, width = at // 2, -(-width // 2)
    if left:
        raise ValueError("its way leads beyond the root")
    return digest.hex()


def root_of_nothing() -> str:
    return _nothing().hex()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]


def _leaf(content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(b"\0")
    digest.update(content)
    return digest.digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _nothing() -> bytes:
    return hashlib.sha256(b"\2").digest()
