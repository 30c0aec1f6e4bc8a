"""MIMIC-IV-ECG (https://physionet.org/content/mimic-iv-ecg/): 800,035 diagnostic ECGs with the machine's report statements.

record_list.csv lists the records, machine_measurements.csv holds 18 report columns (with gaps) for most of them. The two are joined by
study_id: 10,554 records have no measurements row, so the row order of one says nothing about the other.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from data_shards.errors import DataError, UserError
from data_shards.record import EcgRecord
from data_shards.reports import clean_statements
from data_shards.sources.base import Entry, check_keys
from data_shards.sources.common import (
    Labels,
    check_layout,
    file_facts,
    find_table,
    fold_of,
    label_set_names,
    patient_hash,
    read_ecg,
    read_labels,
    read_table,
    strings,
)

log = logging.getLogger(__name__)

REPORT_COLUMNS = tuple(f"report_{k}" for k in range(18))
_RECORD_LIST = "record_list.csv"
_MEASUREMENTS = "machine_measurements.csv"
_PATIENTS = "patients.csv"
_LAYOUT = "MIMIC-IV-ECG as published: record_list.csv, machine_measurements.csv and files/pNNNN/pSUBJECT/sSTUDY/STUDY.hea and .dat"
_SEX = {"F": "female", "M": "male"}


class MimicIvEcg:
    """Source "mimic-iv-ecg". Folds 1..10 by patient hash; label sets only from the `labels` table.

    With MIMIC-IV's patients table, age_years = anchor_age + (year of the ECG - anchor_year): whole years as published, and anchor_age 91
    stands for everyone over 89.
    """

    name = "mimic-iv-ecg"

    def __init__(
        self,
        root: Path,
        *,
        salt: str = "",
        patients: str | Path | None = None,
        labels: str | Path | None = None,
        waveform_note_links: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        check_layout(self.root, self.name, (_RECORD_LIST, _MEASUREMENTS), _LAYOUT)
        self._salt = salt
        self._patients = Path(patients) if patients else find_table(self.root, _PATIENTS)
        self._labels = Path(labels) if labels else None
        self._notes = Path(waveform_note_links) if waveform_note_links else None
        for option, path in (("patients", self._patients), ("labels", self._labels), ("waveform_note_links", self._notes)):
            if path is not None and not path.is_file():
                raise UserError(f"{self.name}: the {option} table {str(path)!r} does not exist", f"check the path given as {option}")
        self._facts: dict[str, Any] = {}
        self.label_sets: tuple[str, ...] = label_set_names(read_labels(self._labels, "study_id")[0].values()) if self._labels else ()

    @classmethod
    def options(cls) -> dict[str, str]:
        return {
            "salt": "secret mixed into the patient hash; keep it outside the shards (default: none)",
            "patients": "MIMIC-IV's patients.csv or patients.csv.gz for age and sex (default: the one beside record_list.csv, if any)",
            "labels": "CSV with study_id, label_set, label: outside labels, one row each",
            "waveform_note_links": "waveform_note_links.csv: keep note_id and note_seq of the cardiologist's note with each record "
            "(a note_id holds the subject_id in clear)",
        }

    def entries(self) -> list[Entry]:
        """One entry per row of record_list.csv, in its order."""
        listing_path = self._table(_RECORD_LIST)
        listing = read_table(listing_path, ("subject_id", "study_id", "ecg_time", "path"))
        self._note("records", listing_path, listing.num_rows)
        if listing.num_rows == 0:
            raise DataError(f"{listing_path} is empty: it lists no record", f"give the folder that holds {_LAYOUT}")
        studies, subjects, times = strings(listing, "study_id"), strings(listing, "subject_id"), strings(listing, "ecg_time")
        keys = [f"mimic-{study}" for study in studies]
        check_keys(keys, listing_path.name)
        reports = self._reports(studies)
        hashes = {subject: patient_hash(subject, self._salt) for subject in dict.fromkeys(subjects)}
        ages, sexes = self._ages_and_sexes(subjects, times)
        labels = self._label_table()
        notes = self._note_links()
        result = []
        for i, (key, path) in enumerate(zip(keys, strings(listing, "path"), strict=True)):
            meta: dict[str, Any] = {"patient": hashes[subjects[i]], "acquired": times[i], "statements": reports[i]}
            if ages is not None and sexes is not None:
                meta["age"], meta["sex"] = ages[i], sexes[i]
            if studies[i] in labels:
                meta["labels"] = labels[studies[i]]
            if studies[i] in notes:
                meta["note"] = notes[studies[i]]
            result.append(Entry(key, path, meta))
        return result

    def read(self, entry: Entry) -> EcgRecord:
        meta = entry.meta
        return read_ecg(
            self.root / entry.path,
            entry.key,
            source=self.name,
            statements=meta["statements"],
            labels=meta.get("labels", {}),
            patient=meta["patient"],
            fold=fold_of(meta["patient"]),
            age_years=meta.get("age"),
            sex=meta.get("sex"),
            acquired=meta["acquired"].replace(" ", "T") or None,
            extra={"note_id": meta["note"][0], "note_seq": meta["note"][1]} if "note" in meta else {},
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "options": {"salted": bool(self._salt)}, "folds": "patient-hash", "tables": dict(self._facts)}

    def _table(self, name: str) -> Path:
        path = find_table(self.root, name)
        assert path is not None, "checked when the source was opened"
        return path

    def _note(self, role: str, path: Path, rows: int) -> None:
        self._facts[role] = file_facts(path, rows)

    def _reports(self, studies: list[str]) -> list[tuple[str, ...]]:
        """Statements of every study, in the order of `studies`; () where there is no measurements row. Equal reports share one tuple."""
        path = self._table(_MEASUREMENTS)
        table = read_table(path, ("study_id",), categorical=REPORT_COLUMNS)
        self._note("reports", path, table.num_rows)
        if table.num_rows == 0:
            raise DataError(f"{path}: empty report table, no record has a report", f"give the folder that holds {_LAYOUT}")
        index = pd.Index(strings(table, "study_id"))
        kept = np.flatnonzero(~index.duplicated())
        if len(kept) < len(index):
            log.warning("duplicated measurements table=%s rows=%d kept=first", path.name, len(index) - len(kept))
        found = index[kept].get_indexer(pd.Index(studies))
        rows = np.where(found >= 0, kept[found], -1)
        phrases, codes = _phrase_codes(table)
        reports: dict[bytes, tuple[str, ...]] = {}
        result: list[tuple[str, ...]] = []
        for row in rows.tolist():
            if row < 0:
                result.append(())
                continue
            packed = codes[row].tobytes()
            if packed not in reports:
                reports[packed] = tuple(phrases[code] for code in codes[row].tolist() if code >= 0)
            result.append(reports[packed])
        log.info("reports source=%s records=%d without=%d distinct=%d", self.name, len(studies), int((rows < 0).sum()), len(reports))
        return result

    def _ages_and_sexes(self, subjects: list[str], times: list[str]) -> tuple[list[float | None] | None, list[str | None] | None]:
        if self._patients is None:
            return None, None
        table = read_table(self._patients, ("subject_id", "gender", "anchor_age", "anchor_year"))
        self._note("patients", self._patients, table.num_rows)
        frame = (
            pd.DataFrame({name: strings(table, name) for name in table.column_names}).drop_duplicates("subject_id").set_index("subject_id")
        )
        rows = frame.reindex(subjects)
        year = pd.to_numeric(pd.Series(times).str.slice(0, 4), errors="coerce").to_numpy()
        anchor_age = pd.to_numeric(rows["anchor_age"], errors="coerce").to_numpy()
        anchor_year = pd.to_numeric(rows["anchor_year"], errors="coerce").to_numpy()
        age = np.maximum(anchor_age + (year - anchor_year), 0.0)
        ages = [None if np.isnan(value) else float(value) for value in age]
        return ages, [_SEX.get(gender) if isinstance(gender, str) else None for gender in rows["gender"]]

    def _note_links(self) -> dict[str, tuple[str, int | None]]:
        """study_id -> note_id and note_seq. A few studies are linked more than once: the first link counts."""
        if self._notes is None:
            return {}
        table = read_table(self._notes, ("study_id", "note_id", "note_seq"))
        self._note("notes", self._notes, table.num_rows)
        links: dict[str, tuple[str, int | None]] = {}
        for study, note, place in zip(*(strings(table, name) for name in ("study_id", "note_id", "note_seq")), strict=True):
            if note:
                links.setdefault(study, (note, int(place) if place.isdigit() else None))
        if len(links) < table.num_rows:
            log.warning("repeated or empty note links table=%s rows=%d kept=first", self._notes.name, table.num_rows - len(links))
        return links

    def _label_table(self) -> dict[str, Labels]:
        if self._labels is None:
            return {}
        labels, rows = read_labels(self._labels, "study_id")
        self._note("labels", self._labels, rows)
        return labels


def _phrase_codes(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Distinct cleaned phrases, and int32 (rows, 18) of positions in that list, -1 where a report column is empty.

    The phrases are few (3,773 in the whole set): each is cleaned once, and the rows are handled as numbers.
    """
    position: dict[str, int] = {}
    codes = np.full((table.num_rows, len(REPORT_COLUMNS)), -1, dtype=np.int32)
    for k, name in enumerate(REPORT_COLUMNS):
        column = table.column(name).unify_dictionaries().combine_chunks()
        translation: list[int] = []
        for text in column.dictionary.to_pylist():
            cleaned = clean_statements((text,))
            translation.append(position.setdefault(cleaned[0], len(position)) if cleaned else -1)
        gap = len(translation)
        indices = column.indices.fill_null(gap).to_numpy(zero_copy_only=False)
        codes[:, k] = np.array([*translation, -1], dtype=np.int32)[indices]
    return list(position), codes
