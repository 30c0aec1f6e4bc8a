"""The checksums of WFDB headers: flipped bits in a signal file, and signal files that hold more than their header announces (a header of another record,
a wrong count of leads or samples, a byte offset left out).

Cutting off the rest of a long file would be a guess that scrambles the leads when it is wrong. The checksums decide; padding with zeros is no surplus.
"""

from __future__ import annotations

import numpy as np

from data_shards.sources.base import RecordRejected
from data_shards.wfdb_header import WfdbHeader


def holds_more(data: bytes | memoryview, needed: int, frame: int) -> bool:
    """Whether at least one frame (bytes of one sample of all leads) follows the `needed` bytes, and is not all padding."""
    return len(data) - needed >= frame and bytes(data[needed:]).strip(b"\0") != b""


def differing_checksums(header: WfdbHeader, stored: np.ndarray) -> tuple[int, ...]:
    """Positions of the leads whose samples, (L, T) as stored, do not add up to the header's checksum; () where it gives none."""
    if not header.checksums:
        return ()
    found = stored.sum(axis=1, dtype=stored.dtype).astype(np.uint16)  # a checksum wraps around at 2^16, as int16 does
    return tuple(np.flatnonzero(found != np.array(header.checksums, dtype=np.uint16)).tolist())


def check_announced(header: WfdbHeader, differing: tuple[int, ...], file: str, size: int, needed: int) -> None:
    """For a file of `size` bytes that holds more than the `needed`: raises RecordRejected("bad-format") unless the checksums say that what was read
    is the record."""
    what = f"{file}: {size} bytes, but its header announces {needed} ({header.signal_count} leads x {header.samples} samples)"
    if not header.checksums:
        raise RecordRejected("bad-format", f"{what} and gives no checksums that say whether the first of them are the record")
    if differing:
        names = ", ".join(header.signals[k].name for k in differing[:3])
        raise RecordRejected("bad-format", f"{what} and the checksums of the first of them differ (lead {names})")
