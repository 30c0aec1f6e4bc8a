"""MIMIC-IV-ECG 1.0: record_list.csv, machine_measurements.csv, files/pNNNN/pSUBJECT/sSTUDY/STUDY.{hea,dat}; and
MIMIC-IV's patients.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cardialign.data_shards.cohort.layouts.base import Rows, wfdb_header, write_wfdb
from cardialign.data_shards.cohort.patients import Patient, Visit
from cardialign.data_shards.cohort.reports import SLOTS
from cardialign.data_shards.cohort.synthesis import Recording
from cardialign.data_shards.record import STANDARD_LEADS

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
"""As the real files order them: aVF before aVL."""
WITHOUT_MEASUREMENTS = 0.0132
"""Share of studies without a row in machine_measurements.csv (10,554 of 800,035)."""

_ORDER = [STANDARD_LEADS.index(lead) for lead in LEADS]
_INTERVALS = ("rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")


def measuring_cart(patient: Patient, visit: Visit, seed: int) -> int | None:
    """The cart that measured and interpreted a study, None for the few whose measurements are missing."""
    rng = np.random.default_rng([seed, 5, patient.index, visit.number])
    return None if rng.random() < WITHOUT_MEASUREMENTS else 6_840_000 + int(rng.integers(0, 9000))


class MimicIvEcg:
    name = "mimic-iv-ecg"
    id_column = "study_id"
    gain = 200.0
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "record_list.csv": ("subject_id", "study_id", "file_name", "ecg_time", "path"),
        "machine_measurements.csv": (
            "subject_id", "study_id", "cart_id", "ecg_time", *(f"report_{i}" for i in range(SLOTS)), "bandwidth",
            "filtering", *_INTERVALS,
        ),
        "patients.csv": ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
    }  # fmt: skip

    def record_id(self, visit: Visit) -> str:
        return str(visit.study_id)

    def seconds(self, patient: Patient, visit: Visit, seed: int) -> float:
        return 10.0

    def write_record(self, root: Path, patient: Patient, visit: Visit, recording: Recording, seed: int) -> Rows:
        subject, study = str(patient.subject_id), str(visit.study_id)
        folder = Path("files") / f"p{subject[:4]}" / f"p{subject}" / f"s{study}"
        (root / folder).mkdir(parents=True)
        counts = recording.counts[_ORDER]
        header = wfdb_header(
            study,
            counts,
            LEADS,
            self.gain,
            recording.sampling_rate,
            visit.time.strftime("%H:%M:%S %d/%m/%Y"),
            (f"<subject_id>: {subject}",),
        )
        write_wfdb(root / folder, header, study, counts)
        time = visit.time.strftime("%Y-%m-%d %H:%M:%S")
        who: dict[str, Any] = {"subject_id": subject, "study_id": study, "ecg_time": time}
        rows: Rows = {"record_list.csv": [{**who, "file_name": study, "path": (folder / study).as_posix()}]}
        cart = measuring_cart(patient, visit, seed)
        if cart is not None:
            row = {
                **who,
                "cart_id": cart,
                "bandwidth": "0.005-150 Hz",
                "filtering": f"{50 if patient.index % 3 == 0 else 60} Hz notch Baseline filter",
            }
            row |= {f"report_{i}": text for i, text in enumerate(recording.report.slots)}
            rows["machine_measurements.csv"] = [row | recording.measurements]
        return rows

    def patient_rows(self, patient: Patient) -> Rows:
        age = int(patient.age)
        year = patient.first.year
        return {
            "patients.csv": [
                {
                    "subject_id": patient.subject_id,
                    "gender": "M" if patient.male else "F",
                    "anchor_age": 91 if age > 89 else age,  # MIMIC-IV groups everyone over 89
                    "anchor_year": year,
                    "anchor_year_group": ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019")[
                        patient.index % 4
                    ],
                    "dod": f"{year + 12}-06-30" if patient.index % 9 == 0 else "",
                }
            ]
        }

    def write_extras(self, root: Path) -> None:
        """Nothing beyond the tables."""
