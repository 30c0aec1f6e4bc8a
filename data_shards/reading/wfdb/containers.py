"""Files of another kind behind a header: MATLAB matrices that are read as what they say, and kinds that are refused by
name, where the bytes would be taken for counts."""

from __future__ import annotations

import string

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.mat4 import HEADER, parse_mat4, read_mat4
from cardialign.data_shards.reading.mat5 import is_mat5, is_mat73, parse_mat5
from cardialign.data_shards.reading.wfdb.formats import FLAC
from cardialign.data_shards.reading.wfdb.header import WfdbHeader

_WHOLE_FILE = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"fLaC": "a FLAC file",
    b"PK\x03\x04": "a ZIP archive, as .npz and .xlsx files are",
    b"\x1f\x8b\x08": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}
"""No counts lie in these, wherever one begins to read."""
_WITH_RAW_NUMBERS = {b"\x93NUMPY": "a NumPy array", b"RIFF": "a RIFF (WAV) file", b"OggS": "an Ogg file"}
"""A byte offset leads to counts in these."""
_FIRSTS = {magic[:1] for magic in (*_WHOLE_FILE, *_WITH_RAW_NUMBERS)}
_PRINTABLE = string.printable.encode()
_LOOKED_AT = 512


def other_kind(data: bytes, format_: int, offset: int) -> str:
    """In words what a signal file is instead of numbers in this format; "" where nothing speaks against them."""
    if is_mat73(data):
        return "a MATLAB file of version 7.3 (HDF5), which is not read: save it with -v7, or as a signal file"
    if data[512:520] == b"\x89HDF\r\n\x1a\n":
        return "an HDF5 file"
    if data[128:132] == b"DICM" and not offset:
        return "a DICOM file"
    if data[:1] in _FIRSTS:
        for magic, what in _WHOLE_FILE.items():
            if data.startswith(magic) and not (magic == b"fLaC" and format_ in FLAC):
                return what
        for magic, what in _WITH_RAW_NUMBERS.items():
            if data.startswith(magic) and not offset:
                return what
    if not offset and not data[:64].translate(None, _PRINTABLE) and _is_text(data[:_LOOKED_AT]):
        return f"text, which begins with {data[:40].decode('ascii')!r}"
    return ""


def _is_text(head: bytes) -> bool:
    """Lines of printable characters: no signal goes along within them for so long."""
    return len(head) >= 16 and not head.translate(None, _PRINTABLE) and len(set(head)) > 4 and b"\n" in head


def matrix(
    data: bytes, size: int, file: str, header: WfdbHeader, leads: int, offset: int
) -> tuple[np.ndarray, bool] | None:
    """int16 (leads, samples) of a MATLAB file that holds its numbers elsewhere, or as other numbers, than the header
    says, and whether it holds more than these; None where the header is right about the bytes, or the file is no such
    file.

    MATLAB 5 keeps `val` elsewhere than level 4 does, often compressed: somebody saved a Challenge file again.

    Raises RecordRejected: bad-format, truncated-signal.
    """
    behind = b""
    if is_mat5(data):
        try:
            values = np.asarray(parse_mat5(data, "val"))
        except ValueError as error:
            raise RecordRejected("bad-format", f"{file}: no readable MATLAB variable 'val': {error}") from None
    else:
        found = parse_mat4(data, size) if offset >= HEADER or file.endswith(".mat") else None
        if found is None or (found.dtype == "<i2" and found.offset == offset and found.shape[0] == leads):
            return None
        values = read_mat4(data, found)
        behind = data[found.offset + values.nbytes :]
    whole = values.ndim == 2 and values.dtype.kind in "iuf" and bool((values == np.rint(values)).all())
    if not whole or len(values) != leads or values.max(initial=0) > 32767 or values.min(initial=0) < -32768:
        raise RecordRejected(
            "bad-format",
            f"{file}: the MATLAB matrix is {values.dtype} {values.shape}, expected 16-bit counts "
            f"({leads}, {header.samples})",
        )
    if header.samples is not None and values.shape[1] < header.samples:
        raise RecordRejected("truncated-signal", f"{file}: {values.shape[1]} samples, expected {header.samples}")
    more = header.samples is not None and bool(values[:, header.samples :].any())
    more |= behind.strip(b"\0") != b"" and parse_mat4(behind, len(behind)) is None  # another variable is no signal
    return np.ascontiguousarray(values[:, : header.samples], dtype="<i2"), more
