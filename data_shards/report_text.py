"""Report text: cleaning that keeps statements apart, a key that tells equal reports, and the two ways of joining
statements."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

CLEANING_VERSION = 2
"""Raised when `clean_statements` or `report_key` changes what it returns; stored beside everything derived from
reports."""

STYLES = ("sentences", "merl")

_SPACE = re.compile(r"\s+")
_STARS = re.compile(r"\*{2,}|=-|=")
_EKG = re.compile(r"\bEKG\b", re.IGNORECASE)
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_EDGES = " \t*-"
_CODE = re.compile(r"^\(\d+@\d+\)")  # what some devices print before a statement that depends on age and heart rate


def one_spelling(text: str) -> str:
    """The text in composed letters (NFC) and without marks that nobody sees: a byte order mark, a zero-width space, a
    soft hyphen, marks of direction. Tools write "ä" as one letter or as two; a reader hands on one report, not two.

    Readers call it on what a table says, before `clean_statements`. Joiners that other scripts spell with stay.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", _UNSEEN.sub("", text))


def clean_statements(raw: Iterable[object]) -> tuple[str, ...]:
    """Report columns or lines as found -> cleaned statements in their order.

    Gaps (None, NaN, blank) are dropped; decoration (`***`, `---`, `=`), leading device codes (`(9@128)`), trailing dots
    and commas and surplus space are stripped, EKG becomes ECG, case stays. "Sinus rhythm." and "Sinus rhythm" become
    the same statement. The 3,862 machine phrases of MIMIC-IV-ECG become 3,080 statements, letter case aside.
    """
    return tuple(clean for clean in map(_clean, (text for text in raw if isinstance(text, str))) if clean)


def report_key(statements: Iterable[str]) -> str:
    """16 hex digits that are equal iff two reports have the same statements in the same order, letter case aside."""
    return hashlib.sha256("\n".join(statement.casefold() for statement in statements).encode()).hexdigest()[:16]


def join_statements(statements: Iterable[str], style: str = "sentences") -> str:
    """One text of cleaned statements.

    "sentences": "Sinus rhythm. Normal ECG."; "merl": the same in lower case, as MERL prepares its reports (Liu et al.,
    ICML 2024). Raises ValueError for another style.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}, expected one of {', '.join(STYLES)}")
    parts = list(statements)
    if style == "merl":
        return ". ".join(parts).lower() + "." if parts else ""
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts)


@lru_cache(maxsize=65536)  # MIMIC-IV-ECG builds 780,000 reports from 3,800 phrases
def _clean(text: str) -> str:
    text = _EKG.sub("ECG", _SPACE.sub(" ", _STARS.sub(" ", text)))
    previous = None
    while text != previous:  # "*** x. ***" and "x. ." take more than one pass
        previous = text
        text = _CODE.sub("", text.strip(_EDGES).rstrip(".,; "))
    return text if re.search(r"\w", text) else ""
