"""What a text table says about its signal beside the numbers: lines that begin with #, and a row of units."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardialign.data_shards.reading.units import is_counts, millivolts_of
from cardialign.data_shards.reading.wfdb.leads import may_be_lead, name_and_unit

_MOST = 100
"""Notes that are read; more are passed over."""
_FACT = re.compile(r"([A-Za-z][\w .()\[\]/-]{0,40}?)\s*[:=]\s*(\S.{0,200}?)\s*")
_NEXT_FACT = re.compile(r"[,;]\s*(?=[A-Za-z][\w .()\[\]/-]{0,40}[:=])")
_HZ = re.compile(r"([0-9.eE+]+)\s*(?:hz|hertz|sps|samples?\s*(?:/|per)\s*s(?:ec(?:ond)?)?)", re.IGNORECASE)
_OF_SAMPLES = re.compile(r"sampl|^fs\b|^(?:data ?)?rate$", re.IGNORECASE)
_OF_LEADS = re.compile(r"leads?|lead ?(?:names?|order)|channels?|channel ?names?|columns?|signals?", re.IGNORECASE)

_CELL = re.compile(r"\s*#(?:#*(?=\s*[;,|\t])|(?:[^\s;,|#]{1,12}[!?]|N/?[A-Z])(?=\s*[;,|\t]|\s+\S))")
"""What a spreadsheet writes into a cell without a number, in the languages that it speaks (`#N/A`, `#NV`, `#DIV/0!`,
`#WERT!`), and where a column is too narrow (`###`)."""


def is_note(line: str) -> bool:
    """Whether a line is no row: it begins with #, and not with a cell of a spreadsheet."""
    return line.lstrip().startswith("#") and _CELL.match(line) is None


@dataclass(frozen=True)
class Notes:
    """lines: the numbers of the lines that are notes; texts: what the first of them say; last: the last line that
    is none."""

    lines: tuple[int, ...]
    texts: tuple[str, ...]
    last: str


def notes_of(path: Path, encoding: str) -> Notes:
    lines: list[int] = []
    texts: list[str] = []
    last = ""
    with path.open(encoding=encoding, errors="replace") as stream:
        for number, line in enumerate(stream):
            if is_note(line):
                lines.append(number)
                if len(texts) < _MOST:
                    texts.append(line.strip().lstrip("#").strip())
            elif line.strip():
                last = line
    return Notes(tuple(lines), tuple(texts), last.strip("\r\n"))


def names_in(texts: Sequence[str], columns: int, fields: Callable[[str], list[str]]) -> list[str]:
    """The names of the columns in a line that begins with #, as numpy.savetxt writes its header; [] without.

    fields: what parts a line of the table.
    """
    best: list[str] = []
    for text in reversed(texts):
        key, _, said = text.partition(":")
        names = said if said and _OF_LEADS.fullmatch(key.strip()) else text
        for words in (fields(names), [word.strip(" '\"") for word in names.split(",")]):
            if len(words) == columns and _leads_among(words) > _leads_among(best):
                best = words
    return best


def _leads_among(words: Sequence[str]) -> int:
    return sum(may_be_lead(name_and_unit(word)[0]) for word in words)


def facts_in(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What `# sampling rate: 250 Hz`, `# unit = uV, fs = 500` and `# leads: I, II` say, by name."""
    facts: dict[str, np.ndarray] = {}
    for text in texts:
        for part in [text] if _OF_LEADS.match(text) else _NEXT_FACT.split(text):
            found = _FACT.fullmatch(part.strip())
            if found is None:
                continue
            name, value = found[1], found[2].strip(" '\"")
            in_hz = _HZ.fullmatch(value)
            if _OF_LEADS.fullmatch(name):
                words = [word for word in re.split(r"[\s,;|'\"\[\]]+", value) if word]
                if any(map(may_be_lead, words)):
                    facts["leads"] = np.array(words)
            elif in_hz is not None:
                facts["fs" if _OF_SAMPLES.search(name) else name] = np.array(in_hz[1])
            elif "unit" not in name.casefold() or millivolts_of(value) is not None or is_counts(value):
                facts[name] = np.array(value)
    return facts


def with_units(names: Sequence[str], cells: Sequence[str]) -> list[str] | None:
    """The names with the units that a second row gives them (`I (uV)`), as PhysioNet's tools write tables; None where
    the row gives none."""
    if len(names) != len(cells):
        return None
    leads = [may_be_lead(name_and_unit(name)[0]) for name in names]
    units = [cell for cell, lead in zip(cells, leads, strict=True) if lead]
    if not units or any(millivolts_of(unit) is None for unit in units):
        return None
    timed = {"seconds", "sec", "s", "milliseconds", "ms"}
    return [
        f"{name} ({cell})" if lead or cell.casefold() in timed else name
        for name, cell, lead in zip(names, cells, leads, strict=True)
    ]
