"""How an id is written, and what it is: the one place where the spellings of other people's tools become one id.

A column of whole numbers with a gap in it leaves pandas as floats (`40689238.0`), numpy as `4.0689238e+07`; other tools
put quotes, blanks or a byte order mark around it, or compose an `ü` of two characters.
"""

from __future__ import annotations

import re
import unicodedata

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import MISSING

LAST_FOLD = (1 << 15) - 1
"""What the index holds."""

_BLANK = " \t\r\n\v\f\u00a0\u2007\u202f\u200b\u2060\ufeff"
_QUOTES = "'\"`\u2018\u2019\u201c\u201d"
_TEXT_CELL = re.compile(r"=\s*(?=[\"'])|'(?=[0-9]+$)")
"""Before an id that a spreadsheet is told to leave alone: `="007"`, and `'007` as some tools save it."""
_FLOAT = re.compile(r"\+?([0-9]+)(?:\.0*)?")
_EXPONENT = re.compile(r"\+?([0-9])(?:\.([0-9]*)[eE]\+?|[eE]\+)([0-9]{1,3})")
"""As tools write a number: with a point or a sign. `4e0` is what a study calls somebody."""
_SPREADSHEET = re.compile(r"\+?[0-9]\.[0-9]{2}E[+-][0-9]{2,3}")
"""As a spreadsheet shows a number of twelve digits, and what it took for one: an id `1E2` leaves it as `1.00E+02`."""
_LETTERED = re.compile(r"^[A-Za-z]{1,3}[-_ ]?(?=[0-9]+$)")
_UUID = re.compile(r"\{?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}?")


def plain_id(text: str, letter: str = "") -> str:
    """The id that `text` writes; "" for none (blank, NaN, null ...).

    `40689238.0`, `40689238.`, `4.0689238000e+07`, `"40689238"`, `="40689238"` and ` 40689238` are `40689238`; a UUID is
    in lower case without braces; other text is composed (NFC). letter: one that the data set puts before its numbers,
    as `s` in MIMIC's `s40689238`.

    Leading zeros stay: `007` may be another record than `7`. A number that lost digits (`4.07E+07`), or that a
    spreadsheet made of an id (`1.00E+02`), stays as it is, so that it equals no id: see `is_rounded`. So does `4e0`,
    which no tool writes for a number.
    """
    if text.isdigit() and text.isascii():
        return text
    word = _bare(text)
    if word.casefold() in MISSING:
        return ""
    if letter and word[:1].casefold() == letter and _FLOAT.fullmatch(word[1:]):
        word = word[1:]
    if found := _FLOAT.fullmatch(word):
        return found[1]
    if (found := _EXPONENT.fullmatch(word)) and not _SPREADSHEET.fullmatch(word):
        digits, exponent = found[2] or "", int(found[3])
        if len(digits) >= exponent and not digits[exponent:].strip("0"):
            return found[1] + digits[:exponent]
        return word
    if found := _UUID.fullmatch(word):
        return found[1].lower()
    return word if word.isascii() else unicodedata.normalize("NFC", word)


def _bare(text: str) -> str:
    """The text without blanks, quotes and the marks of a text cell around it."""
    word = text.strip(_BLANK)
    if found := _TEXT_CELL.match(word):
        word = word[found.end() :]
    while len(word) > 1 and word[0] in _QUOTES and word[-1] in _QUOTES:
        word = word[1:-1].strip(_BLANK)
    return word


def differ(one: str, other: str) -> bool:
    """Whether two ids are numbers, and not the same one, however many zeros they begin with."""
    numbers = one.isascii() and other.isascii() and one.isdigit() and other.isdigit()
    return numbers and one.lstrip("0") != other.lstrip("0")


def other_person(one: str, other: str) -> bool:
    """Whether two plain ids name two persons: `p10` and `10` may be one, and so may `010` and `10`."""
    numbers = [_LETTERED.sub("", each).lstrip("0") for each in (one, other)]
    return one != other and not (numbers[0] == numbers[1] and numbers[0].isdigit())


def is_rounded(text: str) -> bool:
    """Whether `text` is a number whose last digits a spreadsheet took (`4.07E+07`), or one that it made of an id of
    digits and an E: many ids look like that afterwards."""
    word = _bare(text).strip(_QUOTES)
    if _SPREADSHEET.fullmatch(word):
        return True
    found = _EXPONENT.fullmatch(word)
    return found is not None and len(found[2] or "") < int(found[3])


def fold_number(text: str, where: str) -> int:
    """A fold of a table: `3`, `3.0`. Raises DataError."""
    word = plain_id(text)
    if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) <= LAST_FOLD):
        raise DataError(
            f"{where}: the fold {text[:60]!r} is no number from 0 to {LAST_FOLD}", "give folds as whole numbers"
        )
    return int(word)
