"""CODE-15% (https://zenodo.org/records/4916206) in WFDB form, as the PhysioNet Challenge of 2025 distributes it: 400
Hz, 3 to 10 s.

Headers give `# Age`, `# Sex`, `# Chagas label` and `# Source`; patients and the six classes stand in the set's own
exams.csv.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import file_facts, find_table, rows_of
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import age_in_years, header_comments, says_something
from cardialign.data_shards.sources.shared.folder import RecordFolder
from cardialign.data_shards.sources.shared.join import TextRows, stretches
from cardialign.data_shards.sources.shared.matches import STOP_BELOW, contradictions
from cardialign.data_shards.sources.shared.record import read_ecg

log = logging.getLogger(__name__)

CLASSES: dict[str, str] = {
    "1dAVb": "First degree AV block",
    "RBBB": "Right bundle branch block",
    "LBBB": "Left bundle branch block",
    "SB": "Sinus bradycardia",
    "ST": "Sinus tachycardia",
    "AF": "Atrial fibrillation",
}
"""Column of exams.csv -> report statement; AF is atrial fibrillation."""
_YES, _NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no"}


class Code15(RecordFolder):
    """Source "code15".

    Label sets: `chagas` (from the header: "Chagas" or empty; serology, so it is no report statement), and with
    exams.csv `code15` (six classes, empty when the exam has none of them). Statements come from the classes; a normal
    ECG by exams.csv says so.
    """

    name = "code15"
    prefix = "code15"
    label_sets: tuple[str, ...] = ("chagas", "code15")
    layout = "CODE-15% in WFDB form: <exam>.hea and <exam>.dat, at any depth"

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
        exams: str | Path | None = None,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        self._exams = self._table_option("exams", exams) if exams else find_table(self.root, "exams.csv")

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "exams": "CODE-15%'s exams.csv for patients and classes (default: the one in the folder, if any)"
        }

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        exams = self._exam_table()
        match = None if exams is None or self._exams is None else self._join("exams", self._exams, exams.distinct)
        for headers in stretches(self._find((".hea",))):
            paths = [header.removesuffix(".hea") for header in headers]
            names = [path.rpartition("/")[2] for path in paths]
            rows = exams.take(exams.find(names)) if exams is not None else [None] * len(names)
            for path, exam, row in zip(paths, names, rows, strict=True):
                yield path, None, self._meta(exam, row, header_comments(self.root / f"{path}.hea"))
            if match is not None:
                match.add_all(names, [row is not None for row in rows])

    def _meta(self, exam: str, row: Mapping[str, str] | None, comments: Mapping[str, str]) -> dict[str, Any]:
        told = self._person(comments)
        age = age_in_years(row["age"]) if row else None
        if row:
            self._told(age=(row["age"], age), sex=(row["is_male"], _sex(row)))
            self._compare(told, {"age_years": age, "sex": _sex(row)})
        meta: dict[str, Any] = {
            # patients and exams share one range of numbers
            "patient": self._patient_or(f"exam {exam}", row["patient_id"]) if row else f"exam {exam}",
            # a cell that is not understood leaves open what the header says
            "age_years": age if row and says_something(row["age"]) else told["age_years"],
            "sex": _sex(row) if row and says_something(row["is_male"]) else told["sex"],
            "labels": _chagas(comments.get("chagas label", "")),
            "extra": {"collection": comments["source"]} if comments.get("source") else {},
        }
        if row is not None:
            found = tuple(name for name in CLASSES if row[name].casefold() in _YES)
            meta["labels"]["code15"] = found
            normal = not found and row["normal_ecg"].casefold() in _YES
            meta["statements"] = ("Normal ECG",) if normal else tuple(CLASSES[name] for name in found)
        return meta

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        return read_ecg(self.root / entry.path, entry.key, source=self.name, **fields)

    def _exam_table(self) -> TextRows | None:
        if self._exams is None:
            return None
        path, rows = self._exams, 0
        optional = ("age", "is_male", "normal_ecg")
        names = ("exam_id", "patient_id", *optional, *CLASSES)

        def checked() -> Iterator[dict[str, str]]:
            nonlocal rows
            for row in rows_of(path, ("exam_id", "patient_id", *CLASSES), optional):
                odd = next((name for name in CLASSES if row[name].casefold() not in _YES | _NO), None)
                if odd is not None:
                    raise DataError(
                        f"{path}: column {odd} holds {row[odd]!r}, expected True or False",
                        "give exams.csv as it was published",
                    )
                yield dict.fromkeys(names, "") | row
                rows += 1

        table = TextRows(checked(), names, "exam_id")
        self._facts["exams"] = file_facts(path, rows)
        odd = table.contradicting()
        contradictions(self.name, path, "exams", odd, len(odd))
        return table


def _sex(row: Mapping[str, str] | None) -> str | None:
    word = row["is_male"].casefold() if row else ""
    return "male" if word in _YES else "female" if word in _NO else None


def _chagas(word: str) -> dict[str, tuple[str, ...]]:
    word = word.casefold()
    return {"chagas": ("Chagas",)} if word in _YES else {"chagas": ()} if word in _NO else {}
