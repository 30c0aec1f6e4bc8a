"""The exceptions with which numpy answers to changed bytes."""

from __future__ import annotations

import tokenize
import zipfile
import zlib

UNREADABLE_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What `numpy.load` raises for a .npy or .npz with changed bytes: its header is parsed as Python."""
