"""Signal files that hold more than their header announces: a header of another record, a wrong count of leads or samples, a byte offset left out.

Cutting off the rest would be a guess that scrambles the leads when it is wrong. The checksums of the header decide; padding with zeros is no surplus.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.sources.base import RecordRejected
from data_shards.wfdb_header import WfdbHeader, signal_words


def holds_more(data: bytes | memoryview, needed: int, frame: int) -> bool:
    """Whether at least one frame (bytes of one sample of all leads) follows the `needed` bytes, and is not all padding."""
    return len(data) - needed >= frame and bytes(data[needed:]).strip(b"\0") != b""


def check_announced(header_file: Path, header: WfdbHeader, stored: np.ndarray, file: str, size: int, needed: int) -> None:
    """For a file of `size` bytes that holds more than the `needed`: stored (T, L) counts as read must have the checksums of the header.

    Raises RecordRejected("bad-format") when they do not, or when the header gives none.
    """
    given = [words[6] if len(words) > 6 else "" for words in signal_words(header_file, header.signal_count)]
    found = stored.sum(axis=0, dtype=np.int64) % 65536
    what = f"{file}: {size} bytes, but its header announces {needed} ({header.signal_count} leads x {len(stored)} samples)"
    if not any(word.strip("-0") for word in given):
        raise RecordRejected("bad-format", f"{what} and gives no checksums that say whether the first of them are the record")
    wrong = [k for k, word in enumerate(given) if not word.lstrip("-").isdigit() or int(word) % 65536 != found[k]]
    if wrong:
        names = ", ".join(header.signals[k].name for k in wrong[:3])
        raise RecordRejected("bad-format", f"{what} and the checksums of the first of them differ (lead {names})")
