"""What a bad disk, a bad cable or a copy that broke off makes of a file."""

from __future__ import annotations

import os
import random
from pathlib import Path


def flip_bit(path: Path, draw: random.Random) -> None:
    """One bit of the file, any of them."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut_off(path: Path, draw: random.Random) -> None:
    """The end of the file is missing, from any byte on."""
    os.truncate(path, draw.randrange(path.stat().st_size))
