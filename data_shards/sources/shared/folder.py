"""What the readers of record folders share: keys, age and sex in words, header comments, and the base class
`RecordFolder` with the options that all of them take."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.reading.tables import file_facts
from cardialign.data_shards.reading.wfdb.files import header_bytes
from cardialign.data_shards.reading.wfdb.header import header_lines, header_text
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import KEY_PATTERN, Entry
from cardialign.data_shards.sources.shared.labels import Labels, label_set_names, read_labels
from cardialign.data_shards.sources.shared.patients import fold_of, patient_hash

log = logging.getLogger(__name__)

AGE_UNITS = ("years", "months", "weeks", "days")
OLDEST = 130.0
OVER_89 = 300.0
"""PTB-XL's age for everyone over 89; stored as 90.0 years."""
_AGE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\.?\+?")
_YEARS_PER = {
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), 1.0),
    **dict.fromkeys(("mo", "mos", "mon", "month", "months", "m"), 1 / 12),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / 365.25),
    **dict.fromkeys(("d", "day", "days"), 1 / 365.25),
}
_SEX = {
    **dict.fromkeys(("f", "female", "woman", "girl"), "female"),
    **dict.fromkeys(("m", "male", "man", "boy"), "male"),
}


def age_in_years(text: str, unit: str = "years") -> float | None:
    """`59`, `7.5 yr`, `16 mo`, `572d` -> years; `unit` (years, months, weeks, days) is that of a bare number.

    None for NaN, blank, words and ages that nobody has; PTB-XL's 300 for "over 89" becomes 90.
    """
    match = _AGE.fullmatch(text.strip(" '\"").casefold())
    if match is None or (match[2] or unit) not in _YEARS_PER:
        return None
    age = float(match[1]) * _YEARS_PER[match[2] or unit]
    return 90.0 if age == OVER_89 else age if age <= OLDEST else None


def sex_in_words(text: str) -> str | None:
    """`M`, `Female`, `'Male'` -> "male" or "female"; None for anything else, numbers included: what 0 and 1 mean
    differs between sets."""
    return _SEX.get(text.strip(" '\"").casefold())


def header_comments(header: Path) -> dict[str, str]:
    """The `# Name: value` lines of a WFDB header: name in lower case -> value, the first of each name; {} when the file
    cannot be read (the record will be rejected with the reason when its turn comes)."""
    try:
        text = header_text(header_bytes(header))
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in header_lines(text):
        if line.lstrip().startswith("#"):
            name, colon, value = line.strip().lstrip("# ").partition(":")
            if colon:
                fields.setdefault(name.strip().strip("<>").casefold(), value.strip())
    return fields


def number(
    option: str, text: str | float, source: str, accept: Callable[[float], bool] = lambda value: value > 0
) -> float:
    """An option's value as a finite number. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not accept(value):
        raise UserError(f"{source}: {option} is {text!r}", f"give {option} as a positive number")
    return value


class RecordFolder:
    """Base of the readers of record folders.

    A subclass sets `name`, `prefix` (of its keys) and `label_sets`, and implements `_listing`, which yields (path, key
    word or None, meta), and `_read`.

    meta may hold statements, labels, patient (as in the data set; hashed here), fold, age_years, sex, acquired and
    extra; further names are the subclass's own. A record without a patient is its own patient.
    """

    name = ""
    prefix = ""
    label_sets: tuple[str, ...] = ()
    layout = "its records"
    label_id = "record"
    """Column of the `labels` table that names the record."""

    def __init__(self, root: Path, *, salt: str = "", labels: str | Path | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(
                f"{self.name}: the folder {str(root)!r} does not exist", f"give the folder that holds {self.layout}"
            )
        self._salt = salt
        self._facts: dict[str, Any] = {}
        self._given_tables: set[Path] = set()
        self._label_table = None if labels is None else self._table_option("labels", labels)
        self._outside: dict[str, Labels] | None = None
        if self._label_table is not None:
            self._outside, rows = read_labels(self._label_table, self.label_id)
            self._facts["labels"] = file_facts(self._label_table, rows)
            self.label_sets = tuple(dict.fromkeys((*self.label_sets, *label_set_names(self._outside.values()))))

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which only read: a label table of the whole set does not travel to each, but is read
        again where it is wanted."""
        return self.__dict__ | {"_outside": None}

    def _outside_labels(self) -> dict[str, Labels]:
        """Name of a record in the table of outside labels -> its labels; {} without a table."""
        if self._outside is None:
            self._outside = {} if self._label_table is None else read_labels(self._label_table, self.label_id)[0]
        return self._outside

    @classmethod
    def options(cls) -> dict[str, str]:
        return {
            "salt": "secret mixed into the patient hash; keep it outside the shards (default: none)",
            "labels": f"CSV with {cls.label_id}, label_set, label: outside labels, one row each",
        }

    def entries(self) -> Iterator[Entry]:
        """All records in the order of their paths (or of their table), one by one.

        Raises DataError for an empty set, and at the end of the walk when the table of outside labels fits no record.
        """
        listed = labelled = 0
        labels = self._outside_labels()
        for path, name, given in self._listing():
            word = name if name is not None else _stem(path)
            key = f"{self.prefix}-{_key_word(word)}"
            meta = dict(given)
            meta["patient"] = patient_hash(str(meta.get("patient") or word), self._salt)
            meta.setdefault("fold", fold_of(meta["patient"]))
            outside = labels.get(word) or labels.get(key)
            if outside is not None:
                meta["labels"] = {**meta.get("labels", {}), **outside}
                labelled += 1
            yield Entry(key, path, meta)
            listed += 1
        if not listed:
            raise DataError(
                f"{self.name}: no record found under {self.root}", f"give the folder that holds {self.layout}"
            )
        if labels and not labelled:
            raise DataError(
                f"{self.name}: none of the labels belongs to a record of {self.root}",
                f"the column {self.label_id} must hold record names",
            )

    def read(self, entry: Entry) -> EcgRecord:
        names = ("statements", "labels", "patient", "fold", "age_years", "sex", "acquired", "extra")
        return self._read(entry, {name: entry.meta[name] for name in names if name in entry.meta})

    def describe(self) -> dict[str, Any]:
        options = {"salted": bool(self._salt), **self._described()}
        return {"name": self.name, "options": options, "folds": "patient-hash", "tables": dict(self._facts)}

    def _listing(self) -> Iterable[tuple[str, str | None, Mapping[str, Any]]]:
        raise NotImplementedError

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        return {}

    def _table_option(self, option: str, path: str | Path) -> Path:
        if not Path(path).is_file():
            raise UserError(
                f"{self.name}: the {option} table {str(path)!r} does not exist", f"check the path given as {option}"
            )
        self._given_tables.add(Path(path).resolve())
        return Path(path)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


def _key_word(name: str) -> str:
    """The part of a key that names the record; characters that a key cannot hold become "_"."""
    if KEY_PATTERN.fullmatch(name):
        return name
    word = re.sub(r"[^A-Za-z0-9_-]", "_", name.strip())
    if not KEY_PATTERN.fullmatch(word):
        raise DataError(f"{name!r} is no record name", "give every record a name of letters and digits")
    return word
