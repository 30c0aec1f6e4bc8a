"""What a header says of the numbers themselves: the checksum and the first value of each lead. They tell flipped bits
in a signal file, and signal files that hold more than their header announces (a header of another record, a wrong count
of leads or samples, a byte offset left out).

Cutting off the rest of a long file scrambles the leads when the header is wrong about their number. Where there are
checksums they decide; where there are none, a size that another number of leads would have is refused, any other rest
is left and flagged. Padding with zeros is no surplus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.formats import DIFFERENCES
from cardialign.data_shards.reading.wfdb.header import WfdbHeader

MOST_LEADS = 16
"""Of an ECG: twelve, right-sided or posterior ones, or three orthogonal ones beside them.

A file of 24 is one of 12 and twice as long.
"""


def holds_more(data: bytes, size: int, needed: int, frame: int) -> bool:
    """Whether at least one frame (bytes of one sample of all leads) follows the `needed` bytes of a file of this size,
    and is not all padding. data: its bytes, or as many as were read."""
    return size - needed >= frame and (size > len(data) or data[needed:].strip(b"\0") != b"")


def differing(header: WfdbHeader, leads: Sequence[int], stored: Sequence[np.ndarray]) -> list[int]:
    """Those of the leads whose samples, as the file holds them, do not add up to the header's checksum, or do not begin
    with its first value; [] where it gives none."""
    wrong: list[int] = []
    for lead, samples in zip(leads, stored, strict=True):
        sum_ = header.checksums[lead] if header.checksums else None
        first = header.initials[lead] if header.told else None
        if header.signals[lead].format == DIFFERENCES:
            first = None  # it stands before the first sample
        # a checksum wraps around at 2^16, as int16 does
        width = np.int16 if samples.dtype.itemsize == 2 else np.int64
        if (sum_ is not None and int(samples.sum(dtype=width)) & 0xFFFF != sum_) or (
            first is not None and len(samples) and int(samples[0]) != first
        ):
            wrong.append(lead)
    return wrong


def unexplained_rest(
    header: WfdbHeader, leads: Sequence[int], wrong: Sequence[int], file: str, sizes: Sequence[int]
) -> bool:
    """For a file that holds more than it should (sizes: its bytes, those announced, those before the first sample):
    False when checksums prove that what was read is the record, True when there are none and the rest is only left over
    (a header with a smaller count of samples).

    Raises RecordRejected("bad-format") when the checksums or first values differ, and when the size is that of another
    count of leads, where what was read would be scrambled.
    """
    size, needed, offset = sizes
    what = f"{file}: {size} bytes, but its header announces {needed} ({len(leads)} leads x {header.samples} samples)"
    if wrong:
        names = ", ".join(header.signals[lead].name for lead in wrong[:3])
        raise RecordRejected("bad-format", f"{what} and the checksums of the first of them differ (lead {names})")
    if header.checksums:
        return False
    others, left = divmod((size - offset) * len(leads), needed - offset)
    if left == 0 and others <= MOST_LEADS:
        raise RecordRejected("bad-format", f"{what}, has no checksums, and would hold {others} leads of that length")
    return True
