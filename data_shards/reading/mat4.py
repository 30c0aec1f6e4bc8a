"""MATLAB level 4 files (MathWorks, "MAT-File Format", level 4): real full matrices, as the PhysioNet Challenges publish
recordings, and as `save -v4` writes them in other number types."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

HEADER = 20
_NUMBERS = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}


@dataclass(frozen=True)
class Mat4:
    """The first matrix of a file: its name, NumPy's word for its numbers, its shape, and the byte where they begin."""

    name: str
    dtype: str
    shape: tuple[int, int]
    offset: int


def parse_mat4(data: bytes, size: int) -> Mat4 | None:
    """What a file of `size` bytes that begins with `data` says of its first matrix; None where it is no such file."""
    if len(data) < HEADER:
        return None
    for order in "<>":
        kind, rows, columns, imaginary, length = struct.unpack_from(order + "5i", data)
        machine, zero, number, matrix = kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10
        dtype = _NUMBERS.get(number)
        name = data[HEADER : HEADER + max(length, 0)]
        if (
            machine != (order == ">")
            or zero
            or matrix
            or dtype is None
            or imaginary
            or min(rows, columns) < 1
            or not 2 <= length <= 64
            or not name.endswith(b"\0")
            or not name[:-1].replace(b"_", b"a").isalnum()
            or HEADER + length + rows * columns * np.dtype(dtype).itemsize > size
        ):
            continue
        return Mat4(name[:-1].decode("latin-1"), order + dtype, (rows, columns), HEADER + length)
    return None


def read_mat4(data: bytes, matrix: Mat4) -> np.ndarray:
    """The numbers in the shape they have in MATLAB. Raises ValueError when `data` ends before them."""
    values = np.frombuffer(data, matrix.dtype, matrix.shape[0] * matrix.shape[1], matrix.offset)
    return values.reshape(matrix.shape, order="F")
