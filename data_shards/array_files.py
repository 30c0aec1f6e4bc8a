"""Arrays in .npy and .npz files, read without running what is in them: what a header claims is compared with what is
there before memory is taken for it, and of an .npz only what is asked for is unpacked."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from cardialign.data_shards.files import UNREADABLE_ARRAY, open_regular

LARGEST_MEMBER = 1 << 32
"""Bytes of an array of an .npz that is unpacked."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type, as the header at the start of `file` claims them. Raises one of
    UNREADABLE_ARRAY."""
    version = npy.read_magic(file)
    read = _HEADERS.get(version)
    if read is None:
        raise ValueError(f"an array of format {version}, expected 1.0 or 2.0")
    return read(file)


def bytes_claimed(shape: Sequence[int], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize  # whole numbers of Python do not overflow


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file; mapped: memory-mapped, read-only.

    Raises OSError (FileNotFoundError among them) for what cannot be opened and what is no regular file, ValueError in
    words for anything that is no array of plain values of exactly the size that its header claims.
    """
    with os.fdopen(open_regular(Path(path)), "rb") as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("an archive (.npz), it holds no single array of numbers")
            file.seek(0)
            shape, fortran, dtype = array_header(file)
            held = os.fstat(file.fileno()).st_size - file.tell()
            _check_claim(shape, dtype, held, held)
            if not mapped:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
            given: Any = file  # numpy asks for less than its stubs say
            order: Literal["F", "C"] = "F" if fortran else "C"
            array = np.memmap(given, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)
            array.filename = str(path)
            return array
        except UNREADABLE_ARRAY as error:
            raise ValueError(_said(error)) from None


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """These arrays of an .npz file, None: all. Raises as `load_array` does, also where one is not there."""
    with os.fdopen(open_regular(Path(path)), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                wanted = [each.removesuffix(".npy") for each in archive.namelist()] if names is None else names
                return {name: _member(archive, archive.getinfo(f"{name}.npy")) for name in wanted}
        except UNREADABLE_ARRAY as error:
            raise ValueError(_said(error)) from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        shape, _, dtype = array_header(file)
        _check_claim(shape, dtype, info.file_size - file.tell(), LARGEST_MEMBER)
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def _check_claim(shape: tuple[int, ...], dtype: np.dtype, held: int, most: int) -> None:
    if dtype.hasobject:
        raise ValueError("an array of objects, which may hold code")
    size = bytes_claimed(shape, dtype)
    if min(shape, default=0) < 0 or size != held or size > most:
        raise ValueError(
            f"bytes follow its array, a second one perhaps: {held}, of which its header claims {size}"
            if 0 <= size < held <= most
            else f"its header claims an array of {size} bytes, there are {held}, and at most {most} are read"
        )


def _said(error: BaseException) -> str:
    return f"no array that can be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
