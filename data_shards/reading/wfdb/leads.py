"""Names of leads as software spells them, and their rows among the standard twelve."""

from __future__ import annotations

import re
from functools import lru_cache

from cardialign.data_shards.record import STANDARD_LEADS

_ROWS = {name.casefold(): row for row, name in enumerate(STANDARD_LEADS)}


def plain_name(name: str) -> str:
    """`Lead I`, `ECG_V1`, `DII` (derivation II, as in Brazil) -> i, v1, ii."""
    words = re.split(r"[\s_-]+", name.casefold().strip())
    word = words[-1] if len(words) == 2 and words[0] in ("lead", "ecg") else " ".join(words)
    return word[1:] if word in ("di", "dii", "diii") else word


@lru_cache(maxsize=4096)
def row_of(name: str) -> int | None:
    """Row of a lead in STANDARD_LEADS, None for any other channel."""
    return _ROWS.get(plain_name(name))
