"""SCP-ECG statements of PTB-XL: from a record's codes to label sets and to English report statements."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import read_table
from cardialign.data_shards.sources.shared.cells import switched

_SWITCHES = ("diagnostic", "form", "rhythm")
_COLUMNS = ("description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
_CODE_COLUMNS = ("", "code", "Unnamed: 0")
"""Names of the first column, which has none: the last is how pandas writes it again."""
_WORDING = {  # descriptions that do not read as a statement, by the text they contain
    "non-specific ischemic": "non-specific ischemic ST-T changes",
    "ischemic in": "ischemic ST-T changes in",
    "digitalis-effect": "ST-T changes suggesting digitalis effect",
    "electrolytic disturbance or drug (former EDIS)": "ST-T changes due to electrolytic disturbance or drug",
    "non-specific intraventricular conduction disturbance (block)": "non-specific intraventricular conduction "
    "disturbance",
    "bigeminal pattern (unknown origin, SV or Ventricular)": "bigeminal pattern, supraventricular or ventricular",
    "trigeminal pattern (unknown origin, SV or Ventricular)": "trigeminal pattern, supraventricular or ventricular",
    "normal functioning artificial pacemaker": "artificial pacemaker, normal function",
}

_NAMED = """
NORM Normal ECG
NDT Non-diagnostic T abnormality
NST_ Non-specific ST changes
NT_ Non-specific T changes
STD_ Non-specific ST depression
STE_ Non-specific ST elevation
INVT Inverted T waves
LOWT Low T waves
TAB_ T wave abnormality
DIG Digitalis effect
EL Electrolyte or drug effect
ANEUR Ventricular aneurysm
LNGQT Long QT interval
LPR Long PR interval
ABQRS Abnormal QRS
QWAVE Q waves
HVOLT High QRS voltage
LVOLT Low QRS voltage
VCLVH Voltage criteria for left ventricular hypertrophy
PVC Premature ventricular complex
PAC Premature atrial complex
PRC(S) Premature complexes
BIGU Bigeminy
TRIGU Trigeminy
AMI Anterior infarct
ASMI Anteroseptal infarct
ALMI Anterolateral infarct
IMI Inferior infarct
ILMI Inferolateral infarct
IPMI Inferoposterior infarct
IPLMI Inferoposterolateral infarct
LMI Lateral infarct
PMI Posterior infarct
INJAS Anteroseptal subendocardial injury
INJAL Anterolateral subendocardial injury
INJIN Inferior subendocardial injury
INJIL Inferolateral subendocardial injury
INJLA Lateral subendocardial injury
ISC_ Non-specific ischemia
ISCAN Anterior ischemia
ISCAS Anteroseptal ischemia
ISCAL Anterolateral ischemia
ISCIN Inferior ischemia
ISCIL Inferolateral ischemia
ISCLA Lateral ischemia
LVH Left ventricular hypertrophy
RVH Right ventricular hypertrophy
SEHYP Septal hypertrophy
LAO/LAE Left atrial enlargement
RAO/RAE Right atrial enlargement
1AVB First-degree AV block
2AVB Second-degree AV block
3AVB Third-degree AV block
CLBBB Complete left bundle branch block
ILBBB Incomplete left bundle branch block
CRBBB Complete right bundle branch block
IRBBB Incomplete right bundle branch block
LAFB Left anterior fascicular block
LPFB Left posterior fascicular block
IVCD Intraventricular conduction delay
WPW Ventricular pre-excitation
SR Sinus rhythm
SBRAD Sinus bradycardia
STACH Sinus tachycardia
SARRH Sinus arrhythmia
AFIB Atrial fibrillation
AFLT Atrial flutter
SVARR Supraventricular arrhythmia
SVTAC Supraventricular tachycardia
PSVT Paroxysmal supraventricular tachycardia
PACE Paced rhythm
"""
NAMES: dict[str, str] = dict(line.split(" ", 1) for line in _NAMED.strip().splitlines())  # type: ignore[misc]
"""SCP-ECG code of PTB-XL -> what it is called on a page, as the prompt sets call it; reports have the words of the
table."""


def parse_scp_codes(text: str) -> dict[str, float]:
    """`{'NORM': 100.0, 'SR': 0.0}` -> codes with likelihood in percent. Raises ValueError for anything else, also for
    what is no percentage: -1 may say that a code does not hold."""
    try:
        codes = {str(code).strip(): float(likelihood) for code, likelihood in ast.literal_eval(text).items()}
        if all(0 <= likelihood <= 100 for likelihood in codes.values()):
            return codes
        raise ValueError
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        raise ValueError(f"scp_codes {text[:120]!r} is no dictionary of codes and likelihoods") from None


@dataclass
class ScpStatements:
    """The table scp_statements.csv. codes maps a code to its row; unknown counts codes met that are not in the
    table."""

    codes: dict[str, dict[str, str]]
    unknown: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> ScpStatements:
        """Raises DataError when columns are missing, the table is empty, or a cell says neither yes nor no."""
        table = read_table(path, _COLUMNS, optional=_CODE_COLUMNS)
        identifier = next((name for name in _CODE_COLUMNS if name in table.column_names), None)
        if identifier is None or table.num_rows == 0:
            raise DataError(
                f"{path} holds no statement codes in its first column", "give the table as PTB-XL publishes it"
            )
        frame = pd.DataFrame({name: table.column(name).fill_null("").to_pylist() for name in table.column_names})
        for name in _SWITCHES:
            odd = next((cell for cell in frame[name] if switched(cell) is None), None)
            if odd is not None:
                raise DataError(
                    f"{path}: the column {name!r} holds {odd[:40]!r}, expected 1 or nothing",
                    "give the table as PTB-XL publishes it",
                )
        return cls(
            {
                str(row[identifier]).strip(): {name: str(row[name]).strip() for name in _COLUMNS}
                for row in frame.to_dict("records")
            }
        )

    def labels(self, codes: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
        """Label sets scp, super, sub, form, rhythm; a set in which the record has no code is left out."""
        rows = [(code, self.codes[code]) for code in codes if code in self.codes]
        self.unknown.update(code for code in codes if code not in self.codes)
        diagnostic = [row for _, row in rows if _is_set(row["diagnostic"])]
        sets = {
            "scp": list(codes),
            "super": [row["diagnostic_class"] for row in diagnostic],
            "sub": [row["diagnostic_subclass"] for row in diagnostic],
            "form": [code for code, row in rows if _is_set(row["form"])],
            "rhythm": [code for code, row in rows if _is_set(row["rhythm"])],
        }
        return {name: tuple(dict.fromkeys(filter(None, found))) for name, found in sets.items() if any(found)}

    def report(self, codes: Mapping[str, float]) -> tuple[str, ...]:
        """English statements in the order of a machine report: rhythm, diagnoses, form; unknown codes are left out."""
        known = [(code, self.codes[code]) for code in codes if code in self.codes]
        rhythm = [item for item in known if _is_set(item[1]["rhythm"])]
        diagnosis = [item for item in known if _is_set(item[1]["diagnostic"])]
        form = [item for item in known if _is_set(item[1]["form"])]
        ordered = dict([*rhythm, *diagnosis, *form])
        return tuple(_statement(code, row["description"], codes[code]) for code, row in ordered.items())


def _is_set(cell: str) -> bool:
    return switched(cell) is True


def _statement(code: str, description: str, likelihood: float) -> str:
    """One statement with its qualifier.

    PTB-XL codes the wording of the original report as a likelihood: 15 "cannot be excluded", 35 "possible", 50 and 80
    "probable", 100 certain, and 0 when the report states none.
    """
    if code == "NORM" and 50 <= likelihood < 100:
        return "Otherwise normal ECG"  # what those reports say ("sonst normales EKG"): a normal ECG but for its rhythm
    text = next(
        (description.replace(found, wording) for found, wording in _WORDING.items() if found in description),
        description,
    )
    text = text.removeprefix("suggests ")
    if 0 < likelihood <= 15:
        return f"Cannot rule out {text}"
    if 0 < likelihood < 50:
        return f"Possible {text}"
    if 0 < likelihood < 100:
        return f"Probable {text}"
    return text[:1].upper() + text[1:]
