"""The checksums of WFDB headers: flipped bits in a signal file, and signal files that hold more than their header
announces (a header of another record, a wrong count of leads or samples, a byte offset left out).

Cutting off the rest of a long file scrambles the leads when the header is wrong about their number. Where there are
checksums they decide; where there are none, a size that another number of leads would have is refused, any other rest
is left and flagged. Padding with zeros is no surplus.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.header import WfdbHeader

MOST_LEADS = 16
"""Of an ECG: twelve, right-sided or posterior ones, or three orthogonal ones beside them.

A file of 24 is one of 12 and twice as long.
"""


def holds_more(data: bytes | memoryview, needed: int, frame: int) -> bool:
    """Whether at least one frame (bytes of one sample of all leads) follows the `needed` bytes, and is not all
    padding."""
    return len(data) - needed >= frame and bytes(data[needed:]).strip(b"\0") != b""


def differing_checksums(header: WfdbHeader, stored: np.ndarray) -> tuple[int, ...]:
    """Positions of the leads whose samples, (L, T) as stored, do not add up to the header's checksum; () where it gives
    none."""
    if not header.checksums:
        return ()
    found = stored.sum(axis=1, dtype=stored.dtype).astype(np.uint16)  # a checksum wraps around at 2^16, as int16 does
    return tuple(np.flatnonzero(found != np.array(header.checksums, dtype=np.uint16)).tolist())


def unexplained_rest(header: WfdbHeader, differing: tuple[int, ...], file: str, size: int, needed: int) -> bool:
    """For a file of `size` bytes that holds more than the `needed`: False when checksums prove that what was read is
    the record, True when there are none and the rest is only left over (a header with a smaller count of samples).

    Raises RecordRejected("bad-format") when the checksums differ, and when the size is that of another count of leads,
    where what was read would be scrambled.
    """
    what = (
        f"{file}: {size} bytes, but its header announces {needed} ({header.signal_count} leads x {header.samples} "
        "samples)"
    )
    if differing:
        names = ", ".join(header.signals[k].name for k in differing[:3])
        raise RecordRejected("bad-format", f"{what} and the checksums of the first of them differ (lead {names})")
    if header.checksums:
        return False
    offset, leads = header.signals[0].byte_offset, header.files.count(Path(file).name)
    others, left = divmod((size - offset) * leads, needed - offset)
    if left == 0 and others <= MOST_LEADS:
        raise RecordRejected("bad-format", f"{what}, has no checksums, and would hold {others} leads of that length")
    return True
