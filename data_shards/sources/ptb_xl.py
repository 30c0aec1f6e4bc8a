"""PTB-XL (https://physionet.org/content/ptb-xl/): 21,799 ECGs of 10 s with SCP-ECG statements, published folds, 100 and 500 Hz.

Label sets follow the published benchmark (Strodthoff et al. 2021) and the label files of MERL: a statement counts when it is listed, whatever
its likelihood (0 stands for "not stated"), and a record may carry several. A record without any code of a set is not labelled in that set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from data_shards.errors import DataError, UsageError, UserError
from data_shards.record import EcgRecord
from data_shards.reports import clean_statements
from data_shards.sources.base import Entry, RecordRejected, check_keys
from data_shards.sources.common import (
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
from data_shards.sources.scp_statements import ScpStatements, parse_scp_codes

log = logging.getLogger(__name__)

OVER_89 = 300.0
"""PTB-XL's age for everyone over 89; stored as 90.0 years."""
_DATABASE = "ptbxl_database.csv"
_STATEMENTS = "scp_statements.csv"
_LAYOUT = "PTB-XL as published: ptbxl_database.csv, scp_statements.csv, records100/ and records500/"
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


class PtbXl:
    """Source "ptb-xl". Folds are the published ones (strat_fold, 1..10, by patient); by patient hash where the field is empty.

    report "scp" writes English statements from the SCP codes; "original" keeps the published text (mostly German) as one statement. The
    recording annotations that are filled in (axis, infarction stage, noise, pacemaker ...) go to `extra["annotations"]`.
    """

    name = "ptb-xl"

    def __init__(
        self, root: Path, *, salt: str = "", sampling_rate: int | str = 500, report: str = "scp", labels: str | Path | None = None
    ) -> None:
        self.root = Path(root)
        if str(sampling_rate) not in ("100", "500"):
            raise UsageError(f"{self.name}: sampling_rate is {sampling_rate!r}", "choose 100 or 500 (Hz)")
        if report not in _REPORTS:
            raise UsageError(f"{self.name}: report is {report!r}", f"choose one of {', '.join(_REPORTS)}")
        check_layout(self.root, self.name, (_DATABASE, _STATEMENTS), _LAYOUT)
        self._salt = salt
        self._sampling_rate = int(sampling_rate)
        self._report = report
        self._labels = Path(labels) if labels else None
        if self._labels is not None and not self._labels.is_file():
            raise UserError(f"{self.name}: the labels table {str(self._labels)!r} does not exist", "check the path given as labels")
        self._facts: dict[str, Any] = {}
        outside = label_set_names(read_labels(self._labels, "ecg_id")[0].values()) if self._labels else ()
        self.label_sets: tuple[str, ...] = tuple(dict.fromkeys(("scp", "super", "sub", "form", "rhythm", *outside)))

    @classmethod
    def options(cls) -> dict[str, str]:
        return {
            "salt": "secret mixed into the patient hash; keep it outside the shards (default: none)",
            "sampling_rate": "100 or 500 Hz: read records100 or records500 (default: 500)",
            "report": "scp: English statements from the SCP codes; original: the published text (default: scp)",
            "labels": "CSV with ecg_id, label_set, label: outside labels, one row each",
        }

    def entries(self) -> list[Entry]:
        """One entry per row of ptbxl_database.csv, in its order."""
        path = self._table(_DATABASE)
        filename = _FILE_COLUMN[self._sampling_rate]
        required = ("ecg_id", "patient_id", "age", "sex", "recording_date", "report", "scp_codes", "strat_fold", filename)
        table = read_table(path, required, optional=_ANNOTATIONS)
        if table.num_rows == 0:
            raise DataError(f"{path} is empty: it lists no record", f"give the folder that holds {_LAYOUT}")
        self._facts["records"] = file_facts(path, table.num_rows)
        statements = self._statements()
        outside = self._outside_labels()
        columns = {name: strings(table, name) for name in table.column_names}
        ages = pd.to_numeric(pd.Series(columns["age"]), errors="coerce").tolist()
        keys = [f"ptbxl-{_whole(ecg_id)}" for ecg_id in columns["ecg_id"]]
        check_keys(keys, path.name)
        result = []
        for i, key in enumerate(keys):
            row = {name: values[i] for name, values in columns.items()}
            meta = self._meta(row, ages[i], statements)
            meta["labels"] = {**meta["labels"], **outside.get(_whole(row["ecg_id"]), {})}
            result.append(Entry(key, row[filename], meta))
        if statements.unknown:
            log.warning(
                "scp codes not in %s: %s", _STATEMENTS, " ".join(f"{code}={count}" for code, count in sorted(statements.unknown.items()))
            )
        return result

    def read(self, entry: Entry) -> EcgRecord:
        meta = entry.meta
        if "problem" in meta:
            raise RecordRejected("bad-labels", f"{entry.key}: {meta['problem']}")
        if not entry.path:
            raise RecordRejected("missing-file", f"{entry.key}: the table names no signal file at {self._sampling_rate} Hz")
        fields = {name: meta[name] for name in ("statements", "labels", "patient", "fold", "age_years", "sex", "acquired")}
        return read_ecg(self.root / entry.path, entry.key, source=self.name, extra=meta["extra"], **fields)

    def describe(self) -> dict[str, Any]:
        options = {"salted": bool(self._salt), "sampling_rate": self._sampling_rate, "report": self._report}
        return {"name": self.name, "options": options, "folds": "published", "tables": dict(self._facts)}

    def _meta(self, row: dict[str, str], age: float, statements: ScpStatements) -> dict[str, Any]:
        annotations = {name: text for name in _ANNOTATIONS if (text := row.get(name, "").strip(" ,"))}
        patient = patient_hash(_whole(row["patient_id"]), self._salt)
        meta: dict[str, Any] = {
            "labels": {},
            "statements": clean_statements((row["report"],)) if self._report == "original" else (),
            "patient": patient,
            "fold": int(_whole(row["strat_fold"])) if _whole(row["strat_fold"]).isdigit() else fold_of(patient),
            "age_years": None if pd.isna(age) else 90.0 if age >= OVER_89 else float(age),
            "sex": _SEX.get(_whole(row["sex"])),
            "acquired": row["recording_date"].replace(" ", "T") or None,
            "extra": {"annotations": annotations} if annotations else {},
        }
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

    def _outside_labels(self) -> dict[str, dict[str, tuple[str, ...]]]:
        if self._labels is None:
            return {}
        labels, rows = read_labels(self._labels, "ecg_id")
        self._facts["labels"] = file_facts(self._labels, rows)
        return labels

    def _table(self, name: str) -> Path:
        path = find_table(self.root, name)
        assert path is not None, "checked when the source was opened"
        return path


def _whole(text: str) -> str:
    """15709.0 -> 15709: columns with gaps are published as floats."""
    return text.removesuffix(".0")
