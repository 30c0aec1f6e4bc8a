"""What the readers of record folders share: keys, joins that are counted, who is in which fold, and the base class
`RecordFolder` with the options that all of them take."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cardialign.data_shards.errors import DataError, RecordRejected, UsageError, UserError
from cardialign.data_shards.reading.plain_files import check_entry
from cardialign.data_shards.reading.tables import file_facts
from cardialign.data_shards.reading.walk import LeaveOut, NotSeen, find_files
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import KEY_PATTERN, Entry
from cardialign.data_shards.sources.shared.cells import in_capitals_alone
from cardialign.data_shards.sources.shared.demographics import SAME_AGE, not_understood, person, says_something
from cardialign.data_shards.sources.shared.ids import is_rounded, other_person, plain_id
from cardialign.data_shards.sources.shared.labels import (
    Labels,
    LabelTable,
    TwoLabellings,
    label_set_names,
    read_labels,
)
from cardialign.data_shards.sources.shared.matches import EXAMPLES, STOP_BELOW, Match, judge
from cardialign.data_shards.sources.shared.patients import (
    ALONE,
    SHORTEST_SALT,
    People,
    about_salt,
    fold_of,
    patient_hash,
)

log = logging.getLogger(__name__)

_MOST_UNCLEAR = 10_000
LONGEST_NAME = 64
"""Characters of a record's name that its key repeats; that of a DICOM UID at most."""
RECORD_SUFFIXES = (".hea", ".dat", ".mat", ".npy", ".npz", ".csv")
"""What a table may write after a record's name."""


def number(
    option: str, text: str | float, source: str, accept: Callable[[float], bool] = lambda value: value > 0
) -> float:
    """An option's value as a finite number. Raises UserError."""
    try:
        value = float(text)
    except (ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value) or not accept(value):
        raise UserError(f"{source}: {option} is {str(text)[:60]!r}", f"give {option} as a positive number")
    return value


def share(option: str, text: str | float, source: str) -> float:
    """An option's value as a share from 0 to 1. Raises UserError."""
    try:
        value = float(text)
    except (ValueError, TypeError):
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{source}: {option} is {str(text)[:60]!r}", f"give {option} as a share from 0 to 1")
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
    suffixes: tuple[str, ...] = ()
    """What ends the paths of `_listing` and is no part of a record's name."""

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(
                f"{self.name}: the folder {str(root)!r} {'is a file' if self.root.exists() else 'does not exist'}",
                f"give the folder that holds {self.layout}",
            )
        if not isinstance(salt, str | Secret):
            raise UsageError(
                f"{self.name}: salt is {salt!r:.60} (a {type(salt).__name__})", "give a text that nobody can guess"
            )
        self._salt = Secret.of(salt)
        self._min_matched = share("min_matched", min_matched, self.name)
        self._facts: dict[str, Any] = {}
        self._joins: dict[str, Match] = {}
        self._unseen: list[NotSeen] = []
        self._unclear: Counter[str] = Counter()
        self._nameless = 0
        self._others: Counter[str] = Counter()
        self._given_tables: set[Path] = set()
        self._label_table = None if labels is None else self._table_option("labels", labels)
        self._outside: LabelTable | None = None
        if self._label_table is not None:
            self._outside = self._read_labels(self._label_table)
            self._facts["labels"] = file_facts(self._label_table, self._outside.rows)
            self._add_label_sets(label_set_names(self._outside.labels.values()))

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which only read: a label table of the whole set does not travel to each, but is read
        again where it is wanted. The salt does: some compare a record's own patient with the table's."""
        return self.__dict__ | {"_outside": None, "_salt": self._salt.reveal()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_salt": Secret(state["_salt"])}

    def _add_label_sets(self, names: Iterable[str]) -> None:
        """Raises DataError for two sets that would split their labels: `Super` beside PTB-XL's `super`."""
        self.label_sets = tuple(dict.fromkeys((*self.label_sets, *names)))
        if twice := in_capitals_alone(self.label_sets):
            raise DataError(
                f"{self.name}: the label sets {' and '.join(map(repr, twice[0]))} differ in capitals alone: each would "
                "hold a part of the labels, and take the others for absent",
                "write one name in every row, or quite another one for a set of its own",
            )

    def _read_labels(self, table: Path) -> LabelTable:
        """Labels and owners by plain id; rows of one record under several spellings are put together."""
        written = read_labels(table, self.label_id)
        found: dict[str, Labels] = {}
        owners: dict[str, frozenset[str]] = {}
        for name, people in written.owners.items():
            word = self._label_word(name)
            owners[word] = owners.get(word, frozenset()) | people
        for name, labels in written.labels.items():
            word = self._label_word(name)
            if word in found:
                both = {each: (*found[word].get(each, ()), *labels.get(each, ())) for each in (*found[word], *labels)}
                labels = {each: tuple(dict.fromkeys(codes)) for each, codes in both.items()}
            found[word] = labels
        return LabelTable(found, written.rows, owners)

    def _label_word(self, name: str) -> str:
        """A record as a table of labels names it, in the form in which it is looked up."""
        word = plain_id(name).removeprefix("./")
        return next((word.removesuffix(each) for each in RECORD_SUFFIXES if word.endswith(each)), word)

    def _outside_labels(self) -> dict[str, Labels]:
        """Name of a record in the table of outside labels -> its labels; {} without a table."""
        return self._outside_table().labels

    def _outside_table(self) -> LabelTable:
        if self._outside is None:
            self._outside = LabelTable({}, 0, {}) if self._label_table is None else self._read_labels(self._label_table)
        return self._outside

    @classmethod
    def options(cls) -> dict[str, str]:
        return {
            "salt": "secret mixed into the patient hash, 16 characters or more; keep it outside the shards (default: "
            "none, and a warning: whoever has a list of ids can then undo the hash)",
            "labels": f"CSV with {cls.label_id}, label_set, label: outside labels, one row each",
            "min_matched": "share of the records, 0 to 1, that must find their row in each table that is joined; "
            f"under it the build stops (default: {STOP_BELOW:g}; 0: go on whatever fits)",
        }

    def entries(self) -> Iterator[Entry]:
        """All records in the order of their paths (or of their table), one by one.

        Raises DataError for an empty set, for ids that lost digits, and at the end of the walk for a table that fits
        next to no record. What was not looked at is in `not_seen` afterwards.
        """
        self._start()
        listed = 0
        people = People(self.name)
        labels = self._outside_labels()
        match, both = self._label_match() if labels else None, TwoLabellings(labels.values())
        for path, name, given in self._listing():
            word = name if name is not None else self._stem(path)
            key = f"{self.prefix}-{key_word(word)}"
            meta = dict(given)
            told = str(meta.get("patient") or "")
            patient = self._patient_id(self._patient_or(word, told) if "patient" in meta else "", key) or word
            meta["patient"] = patient_hash(patient, self._salt)
            named = patient != word and not patient.startswith(ALONE)
            people.add(meta["patient"], patient, named, meta.get("fold"))
            meta.setdefault("fold", fold_of(meta["patient"]))
            if match is not None:
                outside = self._labels_of(labels, word, key, path)
                if found := both.add(meta.get("labels", {}), outside):
                    meta["labels"] = found
                match.add(word, outside is not None)
                if doubt := self._other_owner(told, word, key, path):
                    meta["doubt"] = doubt
            yield Entry(key, path, meta)
            listed += 1
        self._finish(listed)
        people.tell(listed, self._gives_folds())
        both.tell(self.name)

    def not_seen(self) -> list[NotSeen]:
        """What the walk could not look at; known after `entries`."""
        return list(self._unseen)

    def read(self, entry: Entry) -> EcgRecord:
        if "doubt" in entry.meta:
            raise RecordRejected("bad-metadata", f"{entry.path}: {entry.meta['doubt']}")
        check_entry(self.root, entry.path)
        names = ("statements", "labels", "patient", "fold", "age_years", "sex", "acquired", "extra")
        return self._read(entry, {name: entry.meta[name] for name in names if name in entry.meta})

    def describe(self) -> dict[str, Any]:
        joins = {role: match.facts() for role, match in self._joins.items()}
        options = about_salt(self._salt) | self._described()
        told = {"name": self.name, "options": options, "folds": "patient-hash", "tables": dict(self._facts)}
        return told | ({"joins": joins} if joins else {})

    def _listing(self) -> Iterable[tuple[str, str | None, Mapping[str, Any]]]:
        raise NotImplementedError

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        return {}

    def _gives_folds(self) -> bool:
        """Whether a table of the set has a column of folds."""
        return False

    def _find(self, suffixes: tuple[str, ...], leave_out: LeaveOut | None = None) -> Iterator[str]:
        """The files below the root; what cannot be looked at is kept for `not_seen`."""
        return find_files(self.root, suffixes, leave_out, self._unseen)

    def _person(self, comments: Mapping[str, str]) -> dict[str, Any]:
        """age_years and sex of a header's comments; what is not understood there is counted."""
        self._unclear.update(not_understood(comments))
        return person(comments)

    def _told(self, **cells: tuple[str, Any]) -> None:
        """Cells of a table, each with what was made of it: those that say something, and were not understood, are
        counted."""
        for name, (text, understood) in cells.items():
            if understood is None and says_something(text) and len(self._unclear) < _MOST_UNCLEAR:
                self._unclear[f"{name}: {text.strip()[:40]}"] += 1

    def _join(self, role: str, table: Path, rows: int, **more: Any) -> Match:
        """A join that is to be counted along this walk; `_finish` judges it."""
        self._joins[role] = Match(role, table.name, rows, **more)
        return self._joins[role]

    def _start(self) -> None:
        """Forget what an earlier walk found."""
        for found in (self._joins, self._unseen, self._unclear, self._others):
            found.clear()
        self._nameless = 0

    def _finish(self, listed: int) -> None:
        """At the end of a walk: say what it lacks, and refuse a set that is unusable as a whole."""
        self._unseen[:] = dict.fromkeys(self._unseen)  # a set that is walked twice misses a folder twice
        if self._unseen:
            shown = "; ".join(f"{each.path or '.'!r}: {each.detail}" for each in self._unseen[:EXAMPLES])
            log.warning("not looked at source=%s number=%d: %s", self.name, len(self._unseen), shown)
        if not listed:
            seen = f" ({self._unseen[0].path or str(self.root)!r}: {self._unseen[0].detail})" if self._unseen else ""
            raise DataError(
                f"{self.name}: no record found under {self.root}{seen}", f"give the folder that holds {self.layout}"
            )
        if self._unclear:
            shown = ", ".join(f"{word!r} x {times}" for word, times in self._unclear.most_common(EXAMPLES))
            log.warning(
                "age, sex or time not understood source=%s number=%d: %s", self.name, self._unclear.total(), shown
            )
        if self._others.total():
            log.warning(
                "age or sex source=%s: the table says otherwise than the headers of %s of %d records, and the table "
                "counts; is each row that of its record?",
                self.name,
                " and ".join(f"{times} ({name})" for name, times in sorted(self._others.items()) if times),
                listed,
            )
        if self._nameless:
            log.warning(
                "patients not named source=%s: the table names no patient for %d of %d records; each of them counts as "
                "a patient of its own, and two records of one patient may come to stand in two folds",
                self.name,
                self._nameless,
                listed,
            )
        if len(self._salt) < SHORTEST_SALT:
            log.warning(
                "patient ids are hashed with %s source=%s: whoever has a list of possible ids can find them again; "
                "build with --salt and %d characters or more that nobody can guess",
                f"a salt of only {len(self._salt)} characters" if self._salt else "no salt",
                self.name,
                SHORTEST_SALT,
            )
        for match in self._joins.values():
            judge(self.name, match, self._min_matched)

    def _compare(self, header: Mapping[str, Any], table: Mapping[str, Any]) -> None:
        """Count where a table and a record's own header are of two persons: a table that was sorted by one column gives
        every record the row of another."""
        age, other = header.get("age_years"), table.get("age_years")
        if age is not None and other is not None and abs(age - other) > SAME_AGE:
            self._others["age"] += 1
        sexes = {each["sex"] for each in (header, table) if each.get("sex") is not None}
        self._others["sex"] += len(sexes) > 1

    def _patient_or(self, alone: str, text: str) -> str:
        """The patient that a table names, or `alone` where it names none, which is counted."""
        patient = plain_id(text)
        self._nameless += not patient
        return patient or alone

    def _patient_id(self, text: str, where: str) -> str:
        patient = plain_id(text)
        if not patient.isdigit() and is_rounded(patient):
            raise DataError(
                f"{self.name}: the patient of {where} is {text!r}, a number whose last digits are lost: many patients "
                "would become one",
                "export the table again with ids as text or whole numbers",
            )
        return patient

    def _label_match(self) -> Match:
        assert self._label_table is not None
        labels = self._outside_labels()
        names = [name for name, _ in zip(labels, range(EXAMPLES), strict=False)]
        return self._join("labels", self._label_table, len(labels), partial=True, row_names=names)

    def _labels_of(self, labels: Mapping[str, Labels], word: str, key: str, path: str) -> Labels | None:
        name = self._named_in(labels, word, key, path)
        return None if name is None else labels[name]

    def _named_in(self, labels: Mapping[str, Labels], word: str, key: str, path: str) -> str | None:
        """The record's name in the table of labels."""
        names = (plain_id(word), key, self._label_word(path), self._label_word(PurePosixPath(path).name))
        return next((name for name in names if name and name in labels), None)

    def _other_owner(self, patient: str, word: str, key: str, path: str) -> str:
        """What the table of labels says of the record's patient, where the set says otherwise: sorted by one column
        alone, it would give every record the labels of another. "" where they agree, or one of them says nothing."""
        table, own = self._outside_table(), plain_id(patient)
        name = self._named_in(table.labels, word, key, path) if table.owners and own else None
        people = {plain_id(each) for each in table.owners.get(name or "", ())} - {""}
        others = sorted(each for each in people if other_person(each, own))
        if not others:
            return ""
        return f"the set gives the record to patient {own}, the table of labels to {' and '.join(others[:EXAMPLES])}"

    def _stem(self, path: str) -> str:
        name = path.rpartition("/")[2]
        return next((name[: -len(each)] for each in self.suffixes if name.endswith(each) and name != each), name)

    def _table_option(self, option: str, path: str | Path) -> Path:
        if not isinstance(path, str | os.PathLike) or not Path(path).is_file():
            raise UserError(
                f"{self.name}: the {option} table {str(path)!r} does not exist",
                f"check the path given as --{'table' if option == 'record' else option.replace('_', '-')}",
            )
        self._given_tables.add(Path(path).resolve())
        return Path(path)


def key_word(name: str) -> str:
    """The part of a key that names the record: the name itself where a key can hold it.

    Else characters that it cannot hold become "_", a long name is cut, and 8 digits of the name's hash keep `a.b` and
    `a b` apart. Raises DataError for a name without letters or digits.
    """
    if KEY_PATTERN.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    plain = unicodedata.normalize("NFC", name.strip())
    if not plain:
        raise DataError(f"{name!r} is no record name", "give every record a name of letters and digits")
    word = re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:LONGEST_NAME]
    digest = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{word}-{digest}"
