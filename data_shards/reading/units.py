"""Units as people write them: the one place where `uV`, `µV` and `microvolts` become a factor, and `0.5 kHz` a rate."""

from __future__ import annotations

import re
from functools import lru_cache

_PREFIXES = {"": 1e3, "m": 1.0, "milli": 1.0, "u": 1e-3, "micro": 1e-3, "n": 1e-6, "nano": 1e-6}
_MILLIVOLTS = {prefix + volt: scale for prefix, scale in _PREFIXES.items() for volt in ("v", "volt", "volts")}
_COUNTS = {"counts", "count", "adu", "adc", "adccounts", "adcunits", "lsb", "digital"}


@lru_cache(maxsize=4096)
def plain_unit(word: str) -> str:
    """Small letters only, both characters for micro as u: `µV` is uv, `Micro-volts` microvolts."""
    word = word.strip().casefold().replace("\u00b5", "u").replace("\u03bc", "u")
    return "".join(each for each in word if each not in " _-")


def millivolts_of(word: str) -> float | None:
    """mV of one such unit; None for what is no unit of voltage."""
    return _MILLIVOLTS.get(plain_unit(word))


def is_counts(word: str) -> bool:
    return plain_unit(word) in _COUNTS


_RATE = re.compile(
    r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*(k?)(?:hz|hertz|sps|s/s|samples?\s*(?:/|per)\s*s(?:ec(?:onds?)?)?)"
)


def hertz_of(text: str) -> float | None:
    """Hz of `500 Hz`, `0.5 kHz`, `500 samples/s`, `500 sps`; None for what gives no such unit."""
    found = _RATE.fullmatch(text.strip().casefold())
    return None if found is None else float(found[1]) * (1000 if found[2] else 1)
