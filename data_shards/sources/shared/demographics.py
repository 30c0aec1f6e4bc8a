"""Age and sex in words, and the comments of WFDB headers in which both stand, as every house writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.reading.wfdb.files import header_bytes
from cardialign.data_shards.reading.wfdb.header import header_lines, header_text

AGE_UNITS = ("years", "months", "weeks", "days")
OLDEST = 130.0
OVER_89 = 300.0
"""PTB-XL's age for everyone over 89; stored as 90.0 years."""
SAME_AGE = 1.5
"""Years by which two ways to count an age may differ."""
OR = " or "
"""Between the two ages, or sexes, that a header gives one person."""
NO_TIME = -(1 << 63)
"""Stands where a table does not say when."""
_AGE = re.compile(r"(\d+(?:[.,]\d*)?|[.,]\d+)\s*-?([a-z/]*)\.?(?:\s+(?:old|of age))?\+?")
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")
_OVER_89 = re.compile(r"(?:>\s*=?|≥|over|above)\s*(?:89|90)\s*(?:y|yrs?|years?)?")
_YEARS_PER = {
    **dict.fromkeys(("y", "yr", "yrs", "year", "years", "yo", "y/o", "j", "jahr", "jahre"), 1.0),
    **dict.fromkeys(("mo", "mos", "mon", "month", "months", "m"), 1 / 12),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / 365.25),
    **dict.fromkeys(("d", "day", "days"), 1 / 365.25),
}
_SEX = {
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich", "frau"), "female"),
    **dict.fromkeys(("femenino", "femenina", "feminino", "mujer", "femme", "féminin"), "female"),
    **dict.fromkeys(("m", "male", "man", "boy", "männlich", "mann"), "male"),
    **dict.fromkeys(("masculino", "hombre", "homme", "masculin"), "male"),
}
_UNKNOWN = {
    "",
    "nan",
    "na",
    "n/a",
    "none",
    "null",
    "unknown",
    "unk",
    "u",
    "?",
    "-",
    "-1",
    "x",
    "other",
    "not specified",
}
_YEAR_FIRST = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?")
_DASHED = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAMES = {"age": "age", "sex": "sex", "gender": "sex"}
_PERSON = re.compile(
    r"(?P<before>^|[;,|\t<]|\s)\s*(?:patient'?s?[ _-])?(?P<name>age|sex|gender)\s*"
    r"(?:[(\[_]?\s*(?P<unit>in years|years|yrs?|y|months?|mo|weeks|days?|d)\s*[)\]]?)?\s*>?\s*[:=]\s*",
    re.IGNORECASE,
)


def age_in_years(text: str, unit: str = "years") -> float | None:
    """`59`, `7.5 yr`, `16 mo`, `572d`, `065Y` -> years; `unit` (years, months, weeks, days) is that of a bare number.

    None for NaN, blank, words, ages that nobody has, and `1,050 days`, whose comma may stand between thousands;
    PTB-XL's 300 and other words for "over 89" become 90.
    """
    word = text.strip(" '\"").casefold()
    if _OVER_89.fullmatch(word):
        return 90.0
    match = _AGE.fullmatch(word)
    if match is None or (match[2] or unit) not in _YEARS_PER:
        return None
    years = _YEARS_PER[match[2] or unit]
    if _THOUSANDS.fullmatch(match[1]) and float(match[1].replace(",", "")) * years <= OLDEST:
        return None  # 1,050 days: one, or a thousand?
    age = float(match[1].replace(",", ".")) * years
    return 90.0 if age == OVER_89 else age if age <= OLDEST else None


def sex_in_words(text: str) -> str | None:
    """`M`, `Female`, `'Male'` -> "male" or "female"; None for anything else, numbers included: what 0 and 1 mean
    differs between sets."""
    return _SEX.get(text.strip(" '\"").casefold())


def iso_time(text: str) -> str | None:
    """`2180-07-23 08:44:00`, `2180/7/23 8:44`, `21800723` -> as ISO writes it, with a T between date and time; None for
    what does not begin with the year: which of `03/04/2021` is the month nobody can tell. Nor is a long number a time:
    Python reads 1712010100845, milliseconds of a clock, as one of 1712."""
    word = text.strip(" '\"")
    try:
        if word.isdigit() and len(word) != len("YYYYMMDD"):
            return None
        told = datetime.fromisoformat(word)
    except ValueError:
        found = _YEAR_FIRST.fullmatch(word)
        if found is None:
            return None
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        try:
            made = datetime(year, month, day, hour, minute, second)
        except ValueError:
            return None
        return made.isoformat() if found[4] else made.date().isoformat()
    if not _DASHED.match(word):  # 20210301T0800, 2021-W09-1
        return told.isoformat() if ":" in word or len(word) > len("YYYY-Www-D") else told.date().isoformat()
    return word.replace(" ", "T")


def seconds_of(texts: pa.Array) -> np.ndarray:
    """int64: the times of a column in seconds since 1970, as `iso_time` reads them; NO_TIME for none."""
    try:  # nearly always, and a hundred times as fast
        times = pc.cast(texts, pa.timestamp("s"))
    except pa.ArrowInvalid:
        told = [iso_time(text) if text else None for text in texts.to_pylist()]
        times = pa.array([None if each is None else _second(each) for each in told], pa.timestamp("s"))
    numbers: np.ndarray = times.cast(pa.int64()).fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    return numbers


def _second(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None, microsecond=0)


def says_something(text: str) -> bool:
    """Whether a cell or a comment holds more than a word for "unknown"."""
    return text.strip(" '\"").casefold() not in _UNKNOWN


def header_comments(header: Path) -> dict[str, str]:
    """The `# Name: value` lines of a WFDB header: name in lower case -> value, the first of each name, but every one of
    `dx` (some houses write a line per diagnosis), and `65 or 34` where lines give two ages or sexes; {} when the file
    cannot be read (the record will be rejected with the reason when its turn comes).

    `age` and `sex` are found wherever in a line a house puts them (`<age>: 65 <sex>: F <diagnoses> ...`,
    `Age=65; Sex=M`), each without what follows it.
    """
    try:
        text = header_text(header_bytes(header))
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in header_lines(text):
        if line.startswith("#"):
            said = line.lstrip("# ")
            for name, value in _persons(said).items():
                fields[name] = _together(name, fields[name], value) if name in fields else value
            name, mark, value = said.partition(":")
            if not mark:
                name, mark, value = said.partition("=")
            if mark:
                name, value = name.strip().strip("<>").casefold(), value.strip()
                if name == "dx" and fields.get(name) and value:
                    value = f"{fields.pop(name)},{value}"
                fields.setdefault(name, value)
    return fields


def _together(name: str, first: str, second: str) -> str:
    """What two comments say of one thing: the one that is understood, the first of two that agree, or both, which
    nobody understands: one of them is of another person."""
    one, other = (age_in_years(each) if name == "age" else sex_in_words(each) for each in (first, second))
    if other is None or OR in first:
        return first
    if one is None:
        return second
    same = one == other if isinstance(one, str) or isinstance(other, str) else abs(one - other) <= SAME_AGE
    return first if same else f"{first}{OR}{second}"


def _persons(line: str) -> dict[str, str]:
    """age and sex in one comment, the first of each: name -> value up to the next mark or name.

    In a line that opens with something else they must stand after a mark: `mother's age: 70` is not the patient's.
    """
    found = list(_PERSON.finditer(line))
    if not found:
        return {}
    opens = found[0].start() == 0 or line.startswith("<")
    told: dict[str, str] = {}
    for match, following in zip(found, [*found[1:], None], strict=True):
        if match["before"].isspace() and match["before"] != "\t" and not opens:
            continue
        rest = line[match.end() : following.start() if following is not None else None]
        value = re.split(r"[;|\t<#]|,(?!\d)", rest)[0].strip()
        unit = (match["unit"] or "").casefold().removeprefix("in ")
        if unit and re.fullmatch(r"[\d.,]+", value):
            value = f"{value} {unit}"
        told.setdefault(_NAMES[match["name"].casefold()], value)
    return told


def person(comments: Mapping[str, str]) -> dict[str, Any]:
    """age_years and sex of a header's comments; None where they do not say."""
    return {"age_years": age_in_years(comments.get("age", "")), "sex": sex_in_words(comments.get("sex", ""))}


def not_understood(comments: Mapping[str, str]) -> list[str]:
    """The words for age and sex in a header that say something, and not to us."""
    told = person(comments)
    pairs = (("age", told["age_years"]), ("sex", told["sex"]))
    return [
        f"{name}: {comments[name][:40]}"
        for name, value in pairs
        if value is None and says_something(comments.get(name, ""))
    ]
