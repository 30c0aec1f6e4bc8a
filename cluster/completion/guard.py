"""The leak guard: a completed report must not tell the answer of a later test, nor say its diagnosis twice.

A language model that is asked for waveforms names diagnoses all the same. A feature is dropped when it holds a
diagnosis word that the report holds, when it holds the name of a class of a downstream task, or when the report says it
already. Words are compared whole, letter case and punctuation aside; diagnosis words by their stems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

SAID, DIAGNOSIS, CLASS_NAME = "said already", "diagnosis word", "class name"

STEMS = (
    "aberran",
    "aneurysm",
    "arrhythm",
    "block",
    "bradycard",
    "brugada",
    "cardiomyopath",
    "digitalis",
    "embol",
    "enlarg",
    "extrasystol",
    "fibrillat",
    "flutter",
    "hemiblock",
    "hyperkal",
    "hypertroph",
    "hypokal",
    "infarct",
    "injur",
    "ischaem",
    "ischem",
    "lafb",
    "lae",
    "lbbb",
    "lvh",
    "mobitz",
    "pace",
    "pericardit",
    "preexcit",
    "rae",
    "rbbb",
    "rvh",
    "stemi",
    "strain",
    "tachycard",
    "wenckebach",
    "wolff",
    "wpw",
)
"""How the words of diagnoses begin. Waves, segments, intervals, axes and voltages are none."""
_WHOLE = {"lae", "rae"}
"""Too short to be the beginning of a word."""
_OTHER = re.compile(r"[^a-z0-9']+")


@lru_cache(maxsize=1 << 16)  # 180,000 reports are made of some thousand statements, and share most features
def words(text: str) -> tuple[str, ...]:
    """Lower case, without punctuation; "pre-excitation" is one word."""
    return tuple(_OTHER.sub(" ", text.casefold().replace("pre-ex", "preex")).split())


@lru_cache(maxsize=1 << 16)
def diagnosis_words(text: str) -> frozenset[str]:
    """The stems of the diagnosis words in a text."""
    found = words(text)
    return frozenset(
        stem for stem in STEMS if any(word == stem if stem in _WHOLE else word.startswith(stem) for word in found)
    )


class LeakGuard:
    """names: those of downstream classes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._named: dict[str, bool] = {}
        self._names = sorted({f" {' '.join(found)} " for name in names if (found := words(name))})

    def why_dropped(self, feature: str, statements: Sequence[str]) -> str | None:
        """SAID, DIAGNOSIS or CLASS_NAME; None for a feature that may be added to the report with these statements."""
        own = words(feature)
        if any(own == words(statement) for statement in statements):
            return SAID
        named = diagnosis_words(feature)
        if named and any(named & diagnosis_words(statement) for statement in statements):
            return DIAGNOSIS
        if feature not in self._named:
            padded = f" {' '.join(own)} "
            self._named[feature] = any(name in padded for name in self._names)
        return CLASS_NAME if self._named[feature] else None
