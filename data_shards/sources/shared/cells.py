"""What stands in the cells of a user's own table: labels in every form, and what hints that a column means something
else."""

from __future__ import annotations

import ast
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.sources.shared.ids import is_rounded, plain_id
from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

_LONGEST_LIST = 10_000
_MOST_LABELS = 10_000
_NO = {"0", "0.0", "false", "no", "n"}
_YES = {"1", "1.0", "true", "yes", "y"}
_SWITCHES = _NO | _YES
_DENIALS = _NO | {
    "-1",
    "-1.0",
    "absent",
    "not present",
    "negative",
    "neg",
    "negated",
    "ruled out",
    "excluded",
    "deleted",
}
_DENIALS |= {"nein", "falsch", "non", "faux", "n\u00e3o", "nao", "falso", "nej", "nee"}
_ANSWERS = _DENIALS | _YES | {"present", "positive", "pos", "affirmed", "confirmed", "definite", "certain", "likely"}
_ANSWERS |= {"probable", "possible", "uncertain", "unlikely", "unknown", "ja", "wahr", "oui", "vrai", "si", "s\u00ed"}
_ANSWERS |= {"sim", "verdadero", "verdadeiro", "active", "valid"}
"""What a column beside labels may answer, where it tells which of them a record has."""
_EMPTY_LISTS = ("[]", "[ ]", "()", "set()")
_TUPLE = re.compile(r"\(\s*(['\"]).*\1\s*,?\s*\)", re.DOTALL)
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?""", re.DOTALL)
"""A quoted word, and the blank before the next one where nothing else stands between them."""
_SEVERAL_WORDS = re.compile(r"(?:\s*[/+&,;:]\s*|\s+(?:and\s+|with\s+)?)")
"""What may stand between two labels, if both are labels themselves."""


def labels_of(cell: str, separator: str | None, where: str) -> tuple[str, ...] | None:
    """The labels in a cell, each once: those between separators (None: bars), or in a list as Python, NumPy and JSON
    write it (`['AF', 'SR']`, `['AF' 'SR']`, `('AF', 'SR')`, `["AF"]`). `[]` says "none of them", whatever the
    separator; None, not labelled: a cell of marks alone (`-`).

    Raises DataError that names `where` for what is written like such a list, or a mapping, and holds something else.
    """
    if cell in _EMPTY_LISTS:
        return ()
    if separator is None and (cell[:1] + cell[-1:] in ("[]", "{}") or _TUPLE.fullmatch(cell)):
        words = _listed(cell, where)
    else:
        words = cell.split(separator or "|")
    kept = (plain_label(word, where) for word in words)
    return tuple(dict.fromkeys(word for word in kept if any(each.isalnum() for each in word))) or None


def one_cell(cells: Sequence[str], separator: str, where: str) -> str:
    """The cells of several columns of labels as one column would have them.

    Raises DataError that names `where` for a list in one of several: a mark beside it would make words of its brackets.
    """
    some = [cell for cell in cells if cell and cell not in _EMPTY_LISTS]
    if len(some) > 1 and any(cell[0] in "[(" and cell[-1] in "])" for cell in some):
        raise DataError(
            f"{where}: a list of labels stands in one of several columns of labels",
            "write the labels plainly, or all of them in one column",
        )
    return separator.join(some) or next((cell for cell in cells if cell), "")


@lru_cache(maxsize=4096)
def plain_label(text: str, where: str) -> str:
    """A label in one spelling, as ids have it: `426783006.0`, `4.26783006e+08`, `'426783006'` are the code 426783006.

    Raises DataError that names `where` for a code whose last digits a spreadsheet took (`4.27E+08`): many codes would
    become one label.
    """
    word = text.strip()
    if is_rounded(word):
        raise DataError(
            f"{where}: the label {word[:40]!r} is a number whose last digits are lost: codes would become one",
            "export the table again with codes as text or whole numbers",
        )
    return plain_id(word) or word


def switched(cell: str) -> bool | None:
    """What a cell says of yes and no: `1.0`, `True`; an empty one is no. None: something else."""
    word = cell.strip().casefold()
    return True if word in _YES else False if word in _NO or not word else None


def _listed(cell: str, where: str) -> list[str]:
    try:
        # NumPy writes no commas, and Python makes one word of `'AF' 'SR'`
        apart = _QUOTED.sub(lambda word: word[1] + (", " if word[2] else ""), cell[: _LONGEST_LIST + 1])
        value = ast.literal_eval(apart) if len(cell) <= _LONGEST_LIST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    if isinstance(value, list | set | tuple) and all(isinstance(each, str | int) for each in value):
        return [str(each) for each in value]
    raise DataError(
        f"{where}: the labels {cell[:80]!r} are no list of words", "write labels with a mark between them: AF|SR"
    )


_DENIED = re.compile(
    r"^(?:not?|without|absence of|absent|denies|negative for|rules? out|ruled out|r/o|excluded?|suspected|"
    r"suspicion of|questionable|possible|probable)[\s:_]+\w|^[!~?\u00ac]\s*\w|\w\s*\?$|"
    r"[\w)]\s*[:=]?\s*\b(?:absent|excluded|ruled out|not present)$|[:=]\s*(?:no|neg|negative|false|0)$",
    re.IGNORECASE,
)
"""Labels that deny a finding, or doubt it: `not AF`, `AF: no`, `!AF`, `AF?`, `?AF`."""


class LabelWords:
    """Labels that a column is made of, and whether it may mean something else: a switch, a finding that is denied, one
    label in two cases, several in one, or cells with nothing in them for "none of these"."""

    def __init__(self) -> None:
        self._cells: Counter[str] = Counter()
        self._rows = self._silent = 0

    def see(self, labels: tuple[str, ...] | None) -> None:
        """The labels of one row; None where its cell says nothing."""
        self._rows += 1
        self._silent += labels is None
        for label in labels or ():
            if label in self._cells or len(self._cells) < _MOST_LABELS:
                self._cells[label] += 1

    def tell(self, source: str, column: str) -> None:
        if self._silent:
            log.warning(
                "labels source=%s column=%r says nothing of %d of %d records: they are not labelled, and left out "
                "of evaluations; where a record has none of these labels, write []",
                source,
                column,
                self._silent,
                self._rows,
            )
        if self._cells and {label.casefold() for label in self._cells} <= _SWITCHES:
            log.warning(
                "labels source=%s column=%r holds only %s: if it says whether a record has one finding, write the "
                "finding's name where it has it",
                source,
                column,
                ", ".join(map(repr, self._cells)),
            )
        denied = [(label, times) for label, times in self._cells.most_common() if _DENIED.search(label)]
        if denied:
            shown = ", ".join(f"{label[:60]!r} x {times}" for label, times in denied[:EXAMPLES])
            log.warning(
                "labels source=%s column=%r say that a record has not, or perhaps, what they name, and count as labels "
                "of their own: %s; leave out what a record has not",
                source,
                column,
                shown,
            )
        twice = _in_capitals_or_marks_alone(self._cells)
        if twice:
            shown = "; ".join(
                ", ".join(f"{name!r} x {self._cells[name]}" for name in names) for names in twice[:EXAMPLES]
            )
            log.warning("labels source=%s column=%r differ in capitals or marks alone: %s", source, column, shown)
        several = [(label, times) for label, times in self._cells.most_common() if self._holds_others(label)]
        if several:
            shown = ", ".join(f"{label[:60]!r} x {times}" for label, times in several[:EXAMPLES])
            log.warning(
                "labels source=%s column=%r count as one label each, and are made of words that are labels themselves; "
                "if a record has both, write each by itself: %s", source, column, shown,
            )  # fmt: skip

    def _holds_others(self, label: str) -> bool:
        parts = _SEVERAL_WORDS.split(label)
        return len(parts) > 1 and all(part in self._cells for part in parts)


def says_no(cells: Iterable[str]) -> bool:
    """Whether a column is a switch that is off somewhere: a row of labels with `0` beside it says what a record has
    not."""
    words = {cell.strip().casefold() for cell in cells} - {""}
    return words == {"t", "f"} or (bool(words & _DENIALS) and words <= _ANSWERS)


def in_capitals_alone(names: Iterable[str]) -> list[list[str]]:
    """Names that are one another but for capitals, together."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    return [each for each in spellings.values() if len(each) > 1]


_MARK_WITHIN = re.compile(r"(?<=\w)(?:[\s.\-]|_)+(?=\w)|_+|[\u200b-\u200d\u2060\ufeff]")
_LEAST_CODE = 4


def _in_capitals_or_marks_alone(labels: Iterable[str]) -> list[list[str]]:
    """Labels that are one another but for capitals, and for marks within: `AF-fib` and `AF_fib`, the codes `I44.7` and
    `I447`; not numbers such as `1.5`."""
    spellings: dict[str, list[str]] = {}
    for label in labels:
        word = _MARK_WITHIN.sub("", label.casefold())
        kept = word.isdigit() and len(word) < _LEAST_CODE
        spellings.setdefault(label if kept else word, []).append(label)
    return [each for each in spellings.values() if len(each) > 1]


_BETWEEN_WORDS = re.compile(r"\||[^\s,;\d][,;](?=[^\s,;\d])")
"""Marks between labels, and none of a sentence (`infarction, old`)."""
_OTHER_MARKS = {"label": (";", ",", "|", "\t", "\n", "/", "+", "&"), "report": ("|", ";", "\t", "\n")}


class Marks:
    """What stands between the labels, and between the statements, of a table where the option's separator never does,
    and between the labels of some cells where it does in others: `A;B` would be one label."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._cells: Counter[str] = Counter()
        self._fit: Counter[str] = Counter()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._example: dict[tuple[str, str], str] = {}
        self._separator: dict[str, str] = {}
        self._mixed: Counter[str] = Counter()

    def see(self, what: str, cell: str, separator: str) -> None:
        if not cell:
            return
        self._separator[what] = separator
        self._cells[what] += 1
        self._fit[what] += bool(separator) and separator in cell
        several = what == "label" and separator not in cell and _BETWEEN_WORDS.search(cell)
        if several and len(self._mixed) < _MOST_LABELS:
            self._mixed[cell[:60]] += 1
        if self._fit[what]:
            return
        # a report without a separator is one statement, in which only a bar and a line's end are no punctuation
        for mark in _OTHER_MARKS[what] if separator else ("|", "\n"):
            if mark in cell:
                self._seen[what, mark] += 1
                self._example.setdefault((what, mark), cell[:60])

    def tell(self) -> None:
        if self._fit["label"] and self._mixed:
            shown = ", ".join(f"{cell!r} x {times}" for cell, times in self._mixed.most_common(EXAMPLES))
            log.warning(
                "separator source=%s of=labels: %r parts the labels of %d cells; %d others without it look like "
                "several labels and count as one: %s",
                self._source,
                self._separator["label"],
                self._fit["label"],
                self._mixed.total(),
                shown,
            )
        for what, cells in self._cells.items():
            here = [(times, mark) for (of, mark), times in self._seen.items() if of == what]
            if self._fit[what] or not here:
                continue
            times, mark = max(here, key=lambda each: each[0])
            log.warning(
                "separator source=%s of=%ss: %s stands in none of %d cells, %r in %d, as in %r; if it stands between "
                "%ss, set %s_separator",
                self._source,
                what,
                repr(self._separator[what]) if self._separator[what] else "a separator",
                cells,
                mark,
                times,
                self._example[what, mark],
                what,
                what,
            )
