"""The tables of MIMIC-IV that its ECGs are joined with, each read once in stretches and kept as numbers, rows found by
id."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from cardialign.data_shards.reading.tables import stream_table, strings
from cardialign.data_shards.report_text import clean_statements, one_spelling
from cardialign.data_shards.sources.shared.demographics import (
    NO_TIME,
    OLDEST,
    age_in_years,
    says_something,
    seconds_of,
    sex_in_words,
)
from cardialign.data_shards.sources.shared.ids import plain_id
from cardialign.data_shards.sources.shared.join import NO_ID, IdRows, id_numbers
from cardialign.data_shards.sources.shared.matches import EXAMPLES, contradictions

log = logging.getLogger(__name__)

REPORT_COLUMNS = tuple(f"report_{k}" for k in range(18))


class OfStudies:
    """A table with a row for each study, with the subject that its rows name, and with the time of the ECG."""

    _rows: IdRows

    def __init__(self) -> None:
        self._subjects: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def _see_subjects(self, batch: pa.RecordBatch) -> None:
        named = "subject_id" in batch.schema.names
        self._subjects.append(
            id_numbers(batch.column("subject_id"), "p") if named else np.full(batch.num_rows, NO_ID, dtype=np.int64)
        )

    def subjects(self, studies: np.ndarray) -> np.ndarray:
        """int64: the subject that the row of each study names, NO_ID where there is no row, or where it names none."""
        owners = np.concatenate([np.full(1, NO_ID, dtype=np.int64), *self._subjects])
        self._subjects = [owners[1:]]
        return owners[self._rows.find(studies) + 1]

    def _see_times(self, batch: pa.RecordBatch) -> None:
        named = "ecg_time" in batch.schema.names
        self._times.append(
            seconds_of(batch.column("ecg_time")) if named else np.full(batch.num_rows, NO_TIME, dtype=np.int64)
        )

    def times(self, studies: np.ndarray) -> np.ndarray:
        """int64 as `demographics.seconds_of`: when the row of each study says that its ECG was taken."""
        times = np.concatenate([np.full(1, NO_TIME, dtype=np.int64), *self._times])
        self._times = [times[1:]]
        return times[self._rows.find(studies) + 1]


class ReportColumns(OfStudies):
    """machine_measurements.csv: the report of each study. A study that stands in two rows has the report of the first.

    The phrases are few (3,773 in the whole set): each is cleaned once and kept as text, and a report is the numbers of
    its phrases. In memory per row: 36 bytes, and 2 per statement (4 when there are more than 32,768 phrases).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.phrases: list[str] = []
        position: dict[str, int] = {}
        ids, lengths, numbers = [], [np.zeros(1, dtype=np.int8)], [np.empty(0, dtype=np.int16)]
        for batch in stream_table(path, ("study_id",), categorical=REPORT_COLUMNS, optional=("subject_id", "ecg_time")):
            ids.append(id_numbers(batch.column("study_id"), "s"))
            self._see_subjects(batch)
            self._see_times(batch)
            codes = _phrase_codes(batch, position)
            lengths.append((codes >= 0).sum(axis=1, dtype=np.int8))
            numbers.append(codes[codes >= 0].astype(np.int16 if len(position) < 1 << 15 else np.int32))
        self.phrases = list(position)
        self._numbers = np.concatenate(numbers)
        self._starts = np.cumsum(np.concatenate(lengths), dtype=np.int64)
        self._rows = IdRows(ids)
        self.rows, self.distinct = len(self._rows), self._rows.distinct
        if self._rows.repeated:
            log.warning("duplicated measurements table=%s rows=%d kept=first", path.name, self._rows.repeated)
            rows, firsts = self._rows.pairs()
            differing = [
                (row, first)
                for row, first in zip(rows.tolist(), firsts.tolist(), strict=True)
                if self._report(row) != self._report(first)
            ]
            studies = [str(number) for number in self._rows.ids_of([first for _, first in differing[:EXAMPLES]])]
            contradictions("mimic-iv-ecg", path, "reports", studies, len({first for _, first in differing}))

    def _report(self, row: int) -> tuple[int, ...]:
        return tuple(self._numbers[self._starts[row] : self._starts[row + 1]].tolist())

    def statements(self, studies: np.ndarray) -> list[tuple[str, ...] | None]:
        """Statements of each of these studies, None where the table has no row for it.

        Equal reports share one tuple.
        """
        rows = self._rows.find(studies)
        starts, ends = (self._starts[np.maximum(rows, 0) + side].tolist() for side in (0, 1))
        told: dict[bytes, tuple[str, ...]] = {}
        result: list[tuple[str, ...] | None] = []
        for row, start, end in zip(rows.tolist(), starts, ends, strict=True):
            if row < 0:
                result.append(None)
                continue
            numbers = self._numbers[start:end]
            packed = numbers.tobytes()
            if packed not in told:
                told[packed] = tuple([self.phrases[number] for number in numbers.tolist()])
            result.append(told[packed])
        return result


def _phrase_codes(batch: pa.RecordBatch, position: dict[str, int]) -> np.ndarray:
    """int32 (rows, 18): numbers of the cleaned phrases, -1 where a report column is empty; new phrases are added to
    `position`."""
    codes = np.full((batch.num_rows, len(REPORT_COLUMNS)), -1, dtype=np.int32)
    for k, name in enumerate(REPORT_COLUMNS):
        column = batch.column(name)
        translation = []
        for text in column.dictionary.to_pylist():
            cleaned = clean_statements((text and one_spelling(text),))
            translation.append(position.setdefault(cleaned[0], len(position)) if cleaned else -1)
        gap = len(translation)
        indices = column.indices.fill_null(gap).to_numpy(zero_copy_only=False)
        codes[:, k] = np.array([*translation, -1], dtype=np.int32)[indices]
    return codes


class PatientTable:
    """patients.csv of MIMIC-IV: 29 bytes per patient."""

    def __init__(self, path: Path) -> None:
        ids, ages, years, sexes = [], [np.empty(0)], [np.empty(0)], [np.empty(0, dtype=np.int8)]
        unclear: Counter[str] = Counter()
        self._impossible: Counter[str] = Counter()
        for batch in stream_table(path, ("subject_id", "gender", "anchor_age", "anchor_year")):
            ids.append(id_numbers(batch.column("subject_id"), "p"))
            told = strings(batch, "anchor_age"), strings(batch, "gender")
            ages.append(np.array([np.nan if (age := age_in_years(text)) is None else age for text in told[0]]))
            years.append(_numbers(strings(batch, "anchor_year")))
            sexes.append(np.array([_SEXES.index(sex_in_words(gender)) for gender in told[1]], dtype=np.int8))
            unclear += _unclear("anchor_age", told[0], np.isnan(ages[-1]))
            unclear += _unclear("gender", told[1], sexes[-1] == 0)
        if unclear:
            shown = ", ".join(f"{word!r} x {times}" for word, times in unclear.most_common(EXAMPLES))
            log.warning("age or sex not understood table=%s rows=%d: %s", path.name, unclear.total(), shown)
        self._age, self._year, self._sex = (np.concatenate(parts) for parts in (ages, years, sexes))
        self._rows = IdRows(ids)
        self.rows, self.distinct = len(self._rows), self._rows.distinct
        rows, firsts = self._rows.pairs()
        same = np.ones(rows.size, dtype=bool)
        for column, _ in self._columns():
            one, other = column[rows].astype(np.float64), column[firsts].astype(np.float64)
            same &= (one == other) | (np.isnan(one) & np.isnan(other))
        differing = np.unique(firsts[~same]).tolist()
        subjects = [str(number) for number in self._rows.ids_of(differing[:EXAMPLES])]
        contradictions("mimic-iv-ecg", path, "patients", subjects, len(differing))

    def ages_and_sexes(
        self, subjects: np.ndarray, times: list[str]
    ) -> tuple[list[tuple[float | None, str | None]], list[bool]]:
        """Age in whole years at these times (which start with the year), and sex; None where the table does not say.

        And whether the table has a row for each.
        """
        rows = self._rows.find(subjects)
        known = rows >= 0
        age, year, sex = (
            np.where(known, column[rows] if column.size else 0, blank) for column, blank in self._columns()
        )
        ages = age + (_numbers([time[:4] for time in times]) - year)
        possible = (ages >= -_WHOLE_YEARS) & (ages <= OLDEST)
        for at in np.flatnonzero(np.isfinite(ages) & ~possible).tolist():
            self._impossible[f"{ages[at]:g} years in {times[at][:4]}"] += 1
        kept = [max(each, 0.0) if fits else None for each, fits in zip(ages.tolist(), possible.tolist(), strict=True)]
        return [(each, _SEXES[code]) for each, code in zip(kept, sex.tolist(), strict=True)], known.tolist()

    def tell(self) -> None:
        """Warn of ages that nobody has, which are left out: anchor years of another release, or of another table."""
        if self._impossible:
            shown = ", ".join(f"{word} x {times}" for word, times in self._impossible.most_common(EXAMPLES))
            log.warning(
                "ages that nobody has records=%d, left out: %s; are anchor_age and anchor_year those of this release?",
                self._impossible.total(),
                shown,
            )
        self._impossible.clear()

    def _columns(self) -> list[tuple[np.ndarray, float | int]]:
        return [(self._age, np.nan), (self._year, np.nan), (self._sex, 0)]


_WHOLE_YEARS = 1.0
"""By so much may an age in whole years miss: a newborn's ECG of the December before."""
_SEXES = (None, "female", "male")


def _unclear(name: str, texts: list[str], unknown: np.ndarray) -> Counter[str]:
    """Cells of a column that say something, among those of which nothing was made."""
    return Counter(f"{name}: {texts[at][:40]}" for at in np.flatnonzero(unknown).tolist() if says_something(texts[at]))


def _place(text: str) -> int:
    """A note's number, -1 for what is none."""
    word = plain_id(text)
    return int(word) if word.isascii() and word.isdigit() and len(word) < 19 else -1


def _numbers(texts: list[str]) -> np.ndarray:
    """NaN for what is no number."""
    return pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)


class NoteTable(OfStudies):
    """waveform_note_links.csv: which cardiologist's note belongs to a study.

    A few studies are linked more than once: the first link counts.

    In memory: 32 bytes per link and the text of its note_id.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        ids, places, names = [], [np.empty(0, dtype=np.int64)], []
        self.rows = 0
        for batch in stream_table(path, ("study_id", "note_id", "note_seq"), optional=("subject_id",)):
            self.rows += batch.num_rows
            named = batch.column("note_id").is_valid()
            kept = batch.filter(named)
            ids.append(id_numbers(kept.column("study_id"), "s"))
            self._see_subjects(kept)
            places.append(np.array([_place(text) for text in strings(kept, "note_seq")], dtype=np.int64))
            names.append(kept.column("note_id").cast(pa.large_string()))
        self._rows = IdRows(ids)
        self.distinct = self._rows.distinct
        self._places = np.concatenate(places)
        self._names = pa.concat_arrays([pa.array([], pa.large_string()), *names])
        dropped = self.rows - len(self._rows) + self._rows.repeated
        if dropped:
            log.warning("repeated or empty note links table=%s rows=%d kept=first", path.name, dropped)

    def find(self, studies: np.ndarray) -> list[tuple[str, int | None] | None]:
        """note_id and note_seq of each of these studies, None where no note is linked."""
        rows = self._rows.find(studies)
        found = np.flatnonzero(rows >= 0)
        result: list[tuple[str, int | None] | None] = [None] * rows.size
        names = self._names.take(pa.array(rows[found])).to_pylist()
        for at, name, place in zip(found.tolist(), names, self._places[rows[found]].tolist(), strict=True):
            result[at] = name, place if place >= 0 else None
        return result


MEASURED = ("rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")
"""Columns of machine_measurements.csv: the RR interval and places in the averaged beat in ms, axes in degrees."""


class Measured(OfStudies):
    """machine_measurements.csv: what the device measured of each study, 44 bytes per row. A study that stands in two
    rows has the measurements of the first."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        ids, values = [], [np.empty((0, len(MEASURED)), dtype=np.float32)]
        for batch in stream_table(path, ("study_id", *MEASURED), optional=("subject_id",)):
            ids.append(id_numbers(batch.column("study_id"), "s"))
            self._see_subjects(batch)
            columns = [_numbers(strings(batch, name)).astype(np.float32) for name in MEASURED]
            values.append(np.stack(columns, axis=1))
        self._values = np.concatenate(values)
        self._rows = IdRows(ids)
        self.rows = len(self._rows)
        rows, firsts = self._rows.pairs()
        same = ((one := self._values[rows]) == (other := self._values[firsts])) | (np.isnan(one) & np.isnan(other))
        differing = np.unique(firsts[~same.all(axis=1)]).tolist()
        studies = [str(number) for number in self._rows.ids_of(differing[:EXAMPLES])]
        contradictions("mimic-iv-ecg", path, "measurements", studies, len(differing))

    def of(self, studies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 9), NaN for what is no number, and bool (n,): whether the table has a row for the study."""
        rows = self._rows.find(studies)
        known = rows >= 0
        found = np.full((studies.size, len(MEASURED)), np.nan, dtype=np.float32)
        found[known] = self._values[rows[known]]
        return found, known
