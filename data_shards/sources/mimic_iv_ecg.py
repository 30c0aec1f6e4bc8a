"""MIMIC-IV-ECG (https://physionet.org/content/mimic-iv-ecg/): 800,035 diagnostic ECGs with the machine's report
statements.

record_list.csv lists the records, machine_measurements.csv holds 18 report columns (with gaps) for most of them. The
two are joined by study_id: 10,554 records have no measurements row, so the row order of one says nothing about the
other. Tables are read a stretch of rows at a time; what the join needs stays in memory as numbers, some 30 bytes per
row of machine_measurements.csv (`sources.mimic_tables`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cardialign.data_shards.errors import DataError, RecordRejected
from cardialign.data_shards.reading.plain_files import check_entry
from cardialign.data_shards.reading.tables import check_layout, file_facts, find_table, stream_table, strings
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.mimic_tables import NoteTable, OfStudies, PatientTable, ReportColumns
from cardialign.data_shards.sources.shared.demographics import NO_TIME, iso_time, seconds_of
from cardialign.data_shards.sources.shared.folder import RecordFolder, key_word
from cardialign.data_shards.sources.shared.ids import differ, plain_id
from cardialign.data_shards.sources.shared.join import NO_ID, id_numbers
from cardialign.data_shards.sources.shared.matches import EXAMPLES, STOP_BELOW, Agreement, Match, judge_agreement
from cardialign.data_shards.sources.shared.patients import SpellingsOfNumbers, fold_of, patient_hash
from cardialign.data_shards.sources.shared.record import assemble, record_path

log = logging.getLogger(__name__)

_RECORD_LIST = "record_list.csv"
_MEASUREMENTS = "machine_measurements.csv"
_PATIENTS = "patients.csv"
_SUBJECT = re.compile(r"<?subject_id>?\s*[:=]\s*0*([0-9]+)", re.IGNORECASE)
_DAY = 86_400
"""Seconds."""
_LONGEST_GROUP = 4
"""Digits of `p1000`, the folder of all subjects whose numbers begin so."""


class MimicIvEcg(RecordFolder):
    """Source "mimic-iv-ecg". Folds 1..10 by patient hash; label sets only from the `labels` table.

    With MIMIC-IV's patients table, age_years = anchor_age + (year of the ECG - anchor_year): whole years as published,
    and anchor_age 91 stands for everyone over 89.
    """

    name = "mimic-iv-ecg"
    label_id = "study_id"
    layout = (
        "MIMIC-IV-ECG as published: record_list.csv, machine_measurements.csv and "
        "files/pNNNN/pSUBJECT/sSTUDY/STUDY.hea and .dat"
    )

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        patients: str | Path | None = None,
        labels: str | Path | None = None,
        waveform_note_links: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        check_layout(self.root, self.name, (_RECORD_LIST, _MEASUREMENTS), self.layout)
        self._patients = self._table_option("patients", patients) if patients else find_table(self.root, _PATIENTS)
        self._notes = self._table_option("waveform_note_links", waveform_note_links) if waveform_note_links else None
        self._spellings = SpellingsOfNumbers(self.name)

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "patients": "MIMIC-IV's patients.csv or patients.csv.gz for age and sex "
            "(default: the one beside record_list.csv, if any)",
            "waveform_note_links": "waveform_note_links.csv: keep note_id and note_seq of the cardiologist's note with "
            "each record (a note_id holds the subject_id in clear)",
        }

    def entries(self) -> Iterator[Entry]:
        """One entry per row of record_list.csv, in its order. Raises as `RecordFolder.entries` does."""
        self._start()
        self._spellings = SpellingsOfNumbers(self.name)
        listing = self._table(_RECORD_LIST)
        batches = self._listed(listing)
        first = next(batches)  # the list is judged before the other tables are read
        reports = self._read_reports()
        patients = (
            None if self._patients is None else self._noted("patients", self._patients, PatientTable(self._patients))
        )
        notes = None if self._notes is None else self._noted("notes", self._notes, NoteTable(self._notes))
        joins, clock = self._counted(reports, patients, notes), Agreement("ecg_time", _RECORD_LIST, _MEASUREMENTS)
        hashed = lru_cache(maxsize=1 << 14)(
            lambda subject: patient_hash(self._patient_id(subject, "a record"), self._salt)
        )  # a patient's records stand together
        rows = without = 0
        for batch in chain((first,), batches):
            told = [plain_id(study, "s") for study in strings(batch, "study_id")]
            people = [plain_id(subject, "p") for subject in strings(batch, "subject_id")]
            times, paths = strings(batch, "ecg_time"), strings(batch, "path")
            numbers, subjects = (id_numbers(pa.array(each, pa.string())) for each in (told, people))
            strangers = _strangers({_MEASUREMENTS: reports, "the table of notes": notes}, numbers, subjects)
            _compare_times(clock, told, seconds_of(batch.column("ecg_time")), reports.times(numbers), strangers)
            statements = reports.statements(numbers)
            joins["reports"].add_all(told, [each is not None for each in statements])
            persons, known = (None, []) if patients is None else patients.ages_and_sexes(subjects, times)
            if persons is not None:
                joins["patients"].add_all(people, known)
            linked = notes.find(numbers) if notes is not None else None
            if linked is not None:
                joins["notes"].add_all(told, [each is not None for each in linked])
            for i, path in enumerate(map(record_path, paths)):
                study = told[i] or path.rpartition("/")[2]
                meta: dict[str, Any] = {
                    "patient": hashed(people[i]) if people[i] else patient_hash(f"study {study}", self._salt),
                    "named": bool(people[i]),
                    "acquired": times[i],
                    "statements": statements[i] or (),
                }
                if persons is not None:
                    meta["age"], meta["sex"] = persons[i]
                if "labels" in joins:
                    outside = self._labels_of(self._outside_labels(), study, f"mimic-{study}", path)
                    if outside is not None:
                        meta["labels"] = outside
                    joins["labels"].add(study, outside is not None)
                if linked is not None and linked[i] is not None:
                    meta["note"] = linked[i]
                doubt = _contradiction(path, people[i], told[i]) or strangers.get(i, "")
                if doubt := doubt or self._other_owner(people[i], study, f"mimic-{study}", path):
                    meta["doubt"] = doubt
                yield Entry(f"mimic-{key_word(study)}", path, meta)
            self._check_cells(times, people, subjects)
            rows += batch.num_rows
            without += statements.count(None)
        self._facts["records"] = file_facts(listing, rows)
        log.info("reports source=%s records=%d without=%d phrases=%d", self.name, rows, without, len(reports.phrases))
        judge_agreement(self.name, clock, self._min_matched)
        self._finish(rows, patients)

    def _listed(self, listing: Path) -> Iterator[pa.RecordBatch]:
        """Stretches of record_list.csv. Raises DataError where it lists no record."""
        empty = True
        for each in stream_table(listing, ("subject_id", "study_id", "ecg_time", "path")):
            if each.num_rows:
                empty = False
                yield each
        if empty:
            raise DataError(f"{listing} is empty: it lists no record", f"give the folder that holds {self.layout}")

    def _finish(self, listed: int, patients: PatientTable | None = None) -> None:
        if patients is not None:
            patients.tell()
        self._spellings.tell()
        self._spellings = SpellingsOfNumbers(self.name)  # it does not travel to workers
        super()._finish(listed)

    def _check_cells(self, times: list[str], people: list[str], subjects: np.ndarray) -> None:
        self._spellings.add_all(people, subjects)
        self._nameless += people.count("")
        for text in times:
            if text and iso_time(text) is None:
                self._told(time=(text, None))

    def _counted(
        self, reports: ReportColumns, patients: PatientTable | None, notes: NoteTable | None
    ) -> dict[str, Match]:
        joins = {"reports": self._join("reports", self._table(_MEASUREMENTS), reports.distinct)}
        if patients is not None and self._patients is not None:
            joins["patients"] = self._join("patients", self._patients, patients.distinct)
        if notes is not None and self._notes is not None:
            joins["notes"] = self._join("notes", self._notes, notes.distinct, partial=True)
        if self._outside_labels():
            joins["labels"] = self._label_match()
        return joins

    def _label_word(self, name: str) -> str:
        return plain_id(super()._label_word(name), "s")

    def read(self, entry: Entry) -> EcgRecord:
        meta = entry.meta
        if "doubt" in meta:
            raise RecordRejected("bad-metadata", f"{entry.path}: {meta['doubt']}")
        check_entry(self.root, entry.path)
        path = self.root / entry.path
        signal = read_wfdb(path)
        for comment in signal.comments:
            subject = _SUBJECT.fullmatch(comment)
            if subject and patient_hash(subject[1], self._salt) != meta["patient"] and meta["named"]:
                raise RecordRejected(
                    "bad-metadata",
                    f"{path}.hea is of subject {subject[1]}, {_RECORD_LIST} gives the record to another one",
                )
        return assemble(
            signal,
            str(path),
            entry.key,
            source=self.name,
            statements=meta["statements"],
            labels=meta.get("labels", {}),
            patient=meta["patient"],
            fold=fold_of(meta["patient"]),
            age_years=meta.get("age"),
            sex=meta.get("sex"),
            acquired=iso_time(meta["acquired"]),
            extra={"note_id": meta["note"][0], "note_seq": meta["note"][1]} if "note" in meta else {},
        )

    def _table(self, name: str) -> Path:
        path = find_table(self.root, name)
        assert path is not None, "checked when the source was opened"
        return path

    def _noted(self, role: str, path: Path, table: Any) -> Any:
        self._facts[role] = file_facts(path, table.rows)
        return table

    def _read_reports(self) -> ReportColumns:
        path = self._table(_MEASUREMENTS)
        reports: ReportColumns = self._noted("reports", path, ReportColumns(path))
        if reports.rows == 0:
            raise DataError(
                f"{path}: empty report table, no record has a report", f"give the folder that holds {self.layout}"
            )
        if not reports.phrases:
            log.warning("no report source=%s: every report column of %s is empty", self.name, path.name)
        return reports


def _strangers(tables: dict[str, OfStudies | None], studies: np.ndarray, subjects: np.ndarray) -> dict[int, str]:
    """Which of these records a table gives to another subject, and in what words: sorted by one column alone, it has
    for every study the report of another patient."""
    found: dict[int, str] = {}
    for name, table in tables.items():
        owners = subjects if table is None else table.subjects(studies)
        for at in np.flatnonzero((owners != subjects) & (owners != NO_ID) & (subjects != NO_ID)).tolist():
            found.setdefault(
                at, f"{_RECORD_LIST} gives study {studies[at]} to subject {subjects[at]}, {name} to {owners[at]}"
            )
    return found


def _compare_times(
    clock: Agreement, names: list[str], listed: np.ndarray, measured: np.ndarray, strangers: Collection[int]
) -> None:
    """Times of these records in both tables, counted where both say one; a table may have lost the seconds, or
    all of the hour. strangers: whose row in the other table is not theirs, which is known already."""
    own = np.isin(np.arange(len(names)), list(strangers), invert=True)
    both = own & (listed != NO_TIME) & (measured != NO_TIME)
    one, other = (np.where(both, each, 0) for each in (listed, measured))
    of_day = (one % _DAY == 0) | (other % _DAY == 0)
    same = (np.abs(one - other) < 60) | (of_day & (one // _DAY == other // _DAY))
    clock.records += int(both.sum())
    clock.agreeing += int((both & same).sum())
    for at in np.flatnonzero(both & ~same)[: EXAMPLES - len(clock.examples)].tolist():
        said = (str(np.datetime64(int(each[at]), "s")).replace("T", " ") for each in (listed, measured))
        clock.examples.append(f"study {names[at]} {' and '.join(said)}")


def _contradiction(path: str, subject: str, study: str) -> str:
    """What the published path of a record, `files/pNNNN/pSUBJECT/sSTUDY/STUDY`, says otherwise than its row; "" when
    they agree: a table that was sorted by one column alone gives every ECG the report of another patient."""
    if path.endswith(f"/p{subject}/s{study}/{study}"):  # nearly always
        return ""
    *folders, name = path.split("/")
    seen = [("study", study, name)]
    for folder in folders:
        if folder[:1] == "s":
            seen.append(("study", study, folder[1:]))
        elif folder[:1] == "p" and len(folder) > 1 + _LONGEST_GROUP:
            seen.append(("subject", subject, folder[1:]))
    wrong = next((each for each in seen if differ(*each[1:])), None)
    return f"{_RECORD_LIST} says {wrong[0]} {wrong[1]}, the path {wrong[2]}" if wrong else ""
