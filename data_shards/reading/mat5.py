"""MATLAB level 5 files (MathWorks, "MAT-File Format"), as much of them as ECG sets use: numbers, text and structs of
these, compressed or not.

Every length is checked against what is there. `scipy.io.loadmat` reads the same (tests hold the two equal), but a
changed byte in the right place ends its process, and with it a build of thousands of records.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cardialign.data_shards.reading.plain_files import plain_bytes

MatValue: TypeAlias = "np.ndarray | str | dict[str, MatValue]"

_BEGIN = 1 << 10
"""Bytes of a compressed variable that tell its kind and name."""
LARGEST = 1 << 28
"""Bytes a variable may take; an hour of twelve leads in float64 takes a sixth of it."""
_LARGEST_FILE = 1 << 31
_MAGIC = b"MATLAB 5.0"
_HEADER = 128
_VERSION = 124
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def is_mat5(data: bytes) -> bool:
    """By its version, for the text before it is free, or by the usual text."""
    return data.startswith(_MAGIC) or data[_VERSION:_HEADER] in (b"\x00\x01IM", b"\x01\x00MI")


def is_mat73(data: bytes) -> bool:
    """Whether it is of version 7.3 (HDF5 with the same words before it), which is not read."""
    return data.startswith(b"MATLAB 7.3") or data[_VERSION:_HEADER] in (b"\x00\x02IM", b"\x02\x00MI")


def read_mat5(path: Path | str, name: str) -> MatValue:
    """The variable `name`: an array in the shape it has in MATLAB, a text, or a struct as a dict of these.

    Raises OSError for what cannot be read or is no plain file, and ValueError for anything that is no such file, or
    does not hold this variable in such a form.
    """
    data, size = plain_bytes(path, _LARGEST_FILE)
    if size > len(data):
        raise ValueError(f"a file of {size} bytes, expected one recording")
    return parse_mat5(data, name)


def parse_mat5(data: bytes, name: str) -> MatValue:
    """As `read_mat5`, from the bytes of the file. Raises ValueError."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if is_mat73(data):
        raise ValueError("a file of MATLAB 7.3 (HDF5), which is not read: save it with -v7")
    if not is_mat5(data) or order is None:
        raise ValueError("no MATLAB 5 file")
    at, held = _HEADER, []
    while at + 8 <= len(data):
        kind, body, at = _element(data, at, order)
        if kind == _COMPRESSED:
            kind, other = _begins(body, order)
            if kind != _MATRIX or other != name:
                held += [other] if kind == _MATRIX else []
                continue
            kind, body, _ = _element(_inflated(body), 0, order)
        if kind == _MATRIX:
            matrix = _Matrix(body, order)
            if matrix.name == name:
                return matrix.value()
            held.append(matrix.name)
    raise ValueError(f"no variable {name!r}; it holds {', '.join(held) or 'none'}")


def _begins(body: bytes, order: str) -> tuple[int, str]:
    """Kind and name of a compressed element. A file of many holds a thousand times its size in those that nobody asks
    for: of these no more than the beginning is unpacked."""
    begin = _unpacked(zlib.decompressobj(), body, _BEGIN)
    if len(begin) < 8:
        raise ValueError("a compressed variable is cut short")
    kind, size = struct.unpack_from(order + "II", begin)
    return kind, _Matrix(begin[8 : 8 + size], order).name if kind == _MATRIX else ""


def _unpacked(stream: Any, body: bytes, most: int) -> bytes:
    try:
        unpacked: bytes = stream.decompress(body, most)
    except zlib.error as error:
        raise ValueError(f"a variable cannot be decompressed: {error}") from None
    return unpacked


def _inflated(body: bytes) -> bytes:
    stream = zlib.decompressobj()
    data = _unpacked(stream, body, LARGEST)
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError("a compressed variable is cut short, or too large")
    return data


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Kind and content of the data element at `at`, and where the next one begins."""
    if at + 8 > len(data):
        raise ValueError(f"an element at byte {at} lies beyond the end")
    first, size = struct.unpack_from(order + "II", data, at)
    if first >> 16:  # up to four bytes of content stand in the tag itself
        kind, size = first & 0xFFFF, first >> 16
        if size > 4:
            raise ValueError(f"a small element of {size} bytes at byte {at}")
        return kind, data[at + 4 : at + 4 + size], at + 8
    start, stop = at + 8, at + 8 + size
    if stop > len(data):
        raise ValueError(f"an element of {size} bytes at byte {at} lies beyond the end")
    return first, data[start:stop], stop if first == _COMPRESSED else start + -(-size // 8) * 8


class _Matrix:
    """A matrix element: flags, dimensions and name are read at once, the rest by `value`."""

    def __init__(self, body: bytes, order: str, depth: int = 0) -> None:
        self._body, self._order, self._depth = body, order, depth
        if not body:  # an empty matrix may have no content at all
            self._class, self._complex, self.shape, self.name, self._at = 6, False, (0, 0), "", 0
            return
        _, flags, at = _element(body, 0, order)
        kind, dimensions, at = _element(body, at, order)
        _, name, self._at = _element(body, at, order)
        if len(flags) != 8 or kind != 5 or len(dimensions) % 4 or not 2 <= len(dimensions) // 4 <= 4:
            raise ValueError("a matrix without flags or dimensions")
        word = struct.unpack(order + "II", flags)[0]
        self._class = word & 0xFF
        self._complex = bool(word & 0x800)
        self.shape = tuple(np.frombuffer(dimensions, order + "i4").tolist())
        self.name = name.decode("latin-1")
        if min(self.shape) < 0 or float(np.prod([float(side) for side in self.shape])) > LARGEST:
            raise ValueError(f"a matrix of shape {self.shape}")

    @property
    def plain(self) -> bool:
        """Whether it holds numbers or text."""
        return self._class == _CHAR or self._class in _CLASSES

    def value(self) -> MatValue:
        if self._class == _STRUCT:
            return self._fields()
        if self._class == _CHAR:
            kind, content, _ = self._next()
            if kind not in _TEXT:
                raise ValueError(f"text stored as type {kind}")
            code = _TEXT[kind]
            return content.decode(
                code + {"<": "-le", ">": "-be"}[self._order] if code in ("utf-16", "utf-32") else code, "replace"
            )
        if self._class not in _CLASSES:
            raise ValueError(f"a matrix of class {self._class}, expected numbers, text or a struct")
        if self._complex:
            raise ValueError("complex numbers")
        count = int(np.prod(self.shape))
        if not count:
            return np.zeros(self.shape, _CLASSES[self._class])
        kind, content, _ = self._next()
        if kind not in _NUMBERS or len(content) != count * np.dtype(_NUMBERS[kind]).itemsize:
            raise ValueError(f"{len(content)} bytes of type {kind} for a matrix of shape {self.shape}")
        values = np.frombuffer(content, self._order + _NUMBERS[kind])
        return values.astype(_CLASSES[self._class]).reshape(self.shape, order="F")

    def _next(self) -> tuple[int, bytes, int]:
        return _element(self._body, self._at, self._order)

    def _fields(self) -> dict[str, MatValue]:
        if self.shape != (1, 1) or self._depth:
            raise ValueError(f"a struct of shape {self.shape} at depth {self._depth}, expected one struct of arrays")
        _, length, at = self._next()
        _, names, at = _element(self._body, at, self._order)
        size = struct.unpack(self._order + "i", length)[0] if len(length) == 4 else 0
        if size < 1 or len(names) % size:
            raise ValueError("a struct without field names")
        fields: dict[str, MatValue] = {}
        for start in range(0, len(names), size):
            kind, body, at = _element(self._body, at, self._order)
            if kind != _MATRIX:
                raise ValueError(f"a struct whose field is an element of type {kind}")
            name = names[start : start + size].split(b"\0")[0].decode("latin-1")
            field = _Matrix(body, self._order, self._depth + 1)
            if field.plain:  # cells and objects beside the signal are none of our business
                fields[name] = field.value()
        return fields
