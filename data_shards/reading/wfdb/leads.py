"""Names of leads as software spells them, and their rows among the standard twelve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from cardialign.data_shards.reading.units import millivolts_of
from cardialign.data_shards.record import STANDARD_LEADS

_ROWS = {name.casefold(): row for row, name in enumerate(STANDARD_LEADS)}
_BEFORE = ("mdc", "ecg", "ekg", "lead", "abl", "ableitung", "derivation", "derivacion")
_GLUED = re.compile(rf"(?:{'|'.join(_BEFORE)})({'|'.join(_ROWS)})")
_UNIT_IN_NAME = re.compile(r"(.+?)\s*(?:[\s_/,]+([^\s_/,()\[\]]+)|[(\[]([^()\[\]]+)[)\]])")
_CHEST = {f"c{number}": _ROWS[f"v{number}"] for number in range(1, 7)}
_LIMB = range(6)
_ELECTRODES_OF_AN_EEG = re.compile(r"(?:fp|af|f|fc|ft|t|tp|p|cp|po|o|a|m)(?:[1-9]|10|z)|cz|iz|nz")


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """`Lead I`, `ECG_V1`, `MDC_ECG_LEAD_II`, `LeadIII`, `DII` (derivation II, as in Brazil) -> i, v1, ii, iii, ii; an
    inverted lead keeps its sign: `-aVR` -> -avr."""
    word = name.casefold().strip()
    sign = "-" if word.startswith("-") else ""
    words = re.split(r"[\s_.:-]+", word.removeprefix("-").strip())
    while len(words) > 1 and words[0] in _BEFORE:
        words = words[1:]
    word = " ".join(words)
    if glued := _GLUED.fullmatch(word):
        word = glued[1]
    return sign + (word[1:] if word in ("di", "dii", "diii") else word)


def row_of(name: str) -> int | None:
    """Row of a lead in STANDARD_LEADS, also of an inverted one; None for any other channel."""
    return _ROWS.get(plain_name(name).removeprefix("-"))


def may_be_lead(name: str) -> bool:
    """Whether a channel is a standard lead, or may be one in the company of others: see `rows_of`."""
    return row_of(name) is not None or plain_name(name) in _CHEST


def rows_of(names: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Row of each channel in STANDARD_LEADS, -1 for any other channel, and whether it is that lead upside down.

    `-aVR` (Cabrera's order) is aVR inverted, and counts where the lead itself is not there. C1 to C6 are the chest
    electrodes as IEC 60601-2-25 names them, thus V1 to V6 beside limb leads; not beside V leads or the electrodes of an
    EEG, which has a C3 of its own. A modified lead (MLII, MCL1, CM5) has other electrodes than the lead whose number it
    bears, other amplitudes and another axis: it is none of the twelve.
    """
    rows, inverted = _rows_of(tuple(names))
    return list(rows), list(inverted)


@lru_cache(maxsize=4096)
def _rows_of(names: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Cached: within a data set the names repeat from record to record."""
    words = [plain_name(name) for name in names]
    plain = {_ROWS[word] for word in words if word in _ROWS}
    inverted = [word[:1] == "-" and _ROWS.get(word[1:], -1) not in plain for word in words]
    rows = [_ROWS.get(word[1:] if turned else word, -1) for word, turned in zip(words, inverted, strict=True)]
    beside_limbs = any(row in _LIMB for row in rows) and not any(row > _LIMB[-1] for row in rows)
    if beside_limbs and not any(_ELECTRODES_OF_AN_EEG.fullmatch(word) for word in words):
        rows = [_CHEST.get(word, row) for word, row in zip(words, rows, strict=True)]
    return tuple(rows), tuple(inverted)


def name_and_unit(name: str) -> tuple[str, str]:
    """`I (mV)`, `I_uV`, `V1 [\u00b5V]` -> the lead and its unit, "" where the name is none of a lead with its unit."""
    found = _UNIT_IN_NAME.fullmatch(name.strip())
    if found is None or not may_be_lead(found[1]):
        return name, ""
    unit = found[2] or found[3]
    return (found[1], unit) if millivolts_of(unit) is not None else (name, "")
