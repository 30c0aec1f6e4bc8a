"""PTB-XL (https://physionet.org/content/ptb-xl/): 21,799 ECGs of 10 s with SCP-ECG statements, published folds, 100 and
500 Hz.

Label sets follow the published benchmark (Strodthoff et al. 2021) and the label files of MERL: a statement counts when
it is listed, whatever its likelihood (0 stands for "not stated"), and a record may carry several. A record without any
code of a set is not labelled in that set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, RecordRejected, UsageError
from cardialign.data_shards.reading.tables import check_layout, file_facts, find_table, rows_of
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.report_text import clean_statements, one_spelling
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import age_in_years, iso_time, sex_in_words
from cardialign.data_shards.sources.shared.folder import RecordFolder
from cardialign.data_shards.sources.shared.ids import differ, fold_number, plain_id
from cardialign.data_shards.sources.shared.matches import STOP_BELOW
from cardialign.data_shards.sources.shared.record import read_ecg, record_path
from cardialign.data_shards.sources.vocabularies.scp import ScpStatements, parse_scp_codes

log = logging.getLogger(__name__)

_DATABASE = "ptbxl_database.csv"
_STATEMENTS = "scp_statements.csv"
_REPORTS = ("scp", "original")
_FILE_COLUMN = {100: "filename_lr", 500: "filename_hr"}
_ANNOTATIONS = (
    "heart_axis",
    "infarction_stadium1",
    "baseline_drift",
    "static_noise",
    "burst_noise",
    "electrodes_problems",
    "extra_beats",
    "pacemaker",
)
_SEX = {"0": "male", "1": "female"}


class PtbXl(RecordFolder):
    """Source "ptb-xl".

    Folds are the published ones (strat_fold, 1..10, by patient); by patient hash where the field is empty.

    report "scp" writes English statements from the SCP codes; "original" keeps the published text (mostly German) as
    one statement. The recording annotations that are filled in (axis, infarction stage, noise, pacemaker ...) go to
    `extra["annotations"]`.
    """

    name = "ptb-xl"
    prefix = "ptbxl"
    label_sets: tuple[str, ...] = ("scp", "super", "sub", "form", "rhythm")
    label_id = "ecg_id"
    layout = "PTB-XL as published: ptbxl_database.csv, scp_statements.csv, records100/ and records500/"

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        sampling_rate: int | str = 500,
        report: str = "scp",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
    ) -> None:
        if str(sampling_rate) not in ("100", "500"):
            raise UsageError(
                f"{self.name}: sampling_rate is {sampling_rate!r}", "choose 100 or 500 (Hz; --record-rate of a command)"
            )
        if report not in _REPORTS:
            raise UsageError(f"{self.name}: report is {report!r}", f"choose one of {', '.join(_REPORTS)}")
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        check_layout(self.root, self.name, (_DATABASE, _STATEMENTS), self.layout)
        self._sampling_rate = int(sampling_rate)
        self._report = report

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "sampling_rate": "100 or 500 Hz: read records100 or records500 (default: 500)",
            "report": "scp: English statements from the SCP codes; original: the published text (default: scp)",
        }

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"folds": "published"}

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        """One record per row of ptbxl_database.csv, in its order."""
        path = self._table(_DATABASE)
        filename = _FILE_COLUMN[self._sampling_rate]
        required = (
            "ecg_id",
            "patient_id",
            "age",
            "sex",
            "recording_date",
            "report",
            "scp_codes",
            "strat_fold",
            filename,
        )
        statements = self._statements()
        rows = 0
        for row in rows_of(path, required, optional=_ANNOTATIONS):
            signal = record_path(row[filename])
            record = plain_id(row["ecg_id"]) or signal.rpartition("/")[2]
            meta = self._meta(row, statements, record)
            if differ(record, signal.rpartition("/")[2].removesuffix("_hr").removesuffix("_lr")):
                meta["of_another"] = f"{_DATABASE} says ecg_id {record}, {filename} {signal}"
            yield signal, record, meta
            rows += 1
        if rows == 0:
            raise DataError(f"{path} is empty: it lists no record", f"give the folder that holds {self.layout}")
        self._facts["records"] = file_facts(path, rows)
        if statements.unknown:
            log.warning(
                "scp codes not in %s: %s",
                _STATEMENTS,
                " ".join(f"{code}={count}" for code, count in sorted(statements.unknown.items())),
            )

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        if "of_another" in entry.meta:
            raise RecordRejected("bad-metadata", f"{entry.key}: {entry.meta['of_another']}")
        if "problem" in entry.meta:
            raise RecordRejected("bad-labels", f"{entry.key}: {entry.meta['problem']}")
        if not entry.path:
            raise RecordRejected(
                "missing-file", f"{entry.key}: the table names no signal file at {self._sampling_rate} Hz"
            )
        record = read_ecg(self.root / entry.path, entry.key, source=self.name, **fields)
        if record.sampling_rate != self._sampling_rate:
            raise RecordRejected(
                "bad-format",
                f"{entry.path} says {record.sampling_rate:g} Hz, the option sampling_rate {self._sampling_rate} Hz",
            )
        return record

    def _described(self) -> dict[str, Any]:
        return {"sampling_rate": self._sampling_rate, "report": self._report}

    def _gives_folds(self) -> bool:
        return True

    def _meta(self, row: dict[str, str], statements: ScpStatements, record: str) -> dict[str, Any]:
        annotations = {name: text for name in _ANNOTATIONS if (text := row.get(name, "").strip(" ,"))}
        meta: dict[str, Any] = {
            "labels": {},
            "statements": clean_statements((one_spelling(row["report"]),)) if self._report == "original" else (),
            "patient": self._patient_or(f"record {record}", row["patient_id"]),
            "age_years": age_in_years(row["age"]),
            "sex": _SEX.get(plain_id(row["sex"])) or sex_in_words(row["sex"]),
            "acquired": iso_time(row["recording_date"]),
            "extra": {"annotations": annotations} if annotations else {},
        }
        self._told(
            age=(row["age"], meta["age_years"]),
            sex=(row["sex"], meta["sex"]),
            time=(row["recording_date"], meta["acquired"]),
        )
        if plain_id(row["strat_fold"]):
            meta["fold"] = fold_number(row["strat_fold"], _DATABASE)
        try:
            codes = parse_scp_codes(row["scp_codes"])
        except ValueError as error:
            meta["problem"] = str(error)
            return meta
        meta["labels"] = statements.labels(codes)
        if self._report == "scp":
            meta["statements"] = statements.report(codes)
        return meta

    def _statements(self) -> ScpStatements:
        path = self._table(_STATEMENTS)
        statements = ScpStatements.read(path)
        self._facts["scp_statements"] = file_facts(path, len(statements.codes))
        return statements

    def _table(self, name: str) -> Path:
        path = find_table(self.root, name)
        assert path is not None, "checked when the source was opened"
        return path
