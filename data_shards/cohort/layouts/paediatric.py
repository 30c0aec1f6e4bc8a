"""A paediatric layout: one .npz per record with `signal` float32 (12, T) in mV, and records.csv with age in years to
the day, newborns included."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from cardialign.data_shards.cohort.layouts.base import Rows, patient_number
from cardialign.data_shards.cohort.patients import LIFESPAN, Patient, Visit
from cardialign.data_shards.cohort.synthesis import Recording
from cardialign.data_shards.record import STANDARD_LEADS


class Paediatric:
    name = "paediatric"
    id_column = "record_id"
    gain = 1000.0
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "records.csv": (
            "record_id",
            "patient_id",
            "path",
            "fs",
            "n",
            "leads",
            "age_years",
            "age_days",
            "sex",
            "recorded",
            "report",
        ),
    }

    def record_id(self, visit: Visit) -> str:
        return f"V{visit.number:05d}"

    def seconds(self, patient: Patient, visit: Visit, seed: int) -> float:
        """Recordings of children differ in length: 10 to 20 s."""
        return (10.0, 10.0, 10.0, 12.0, 14.0, 16.0, 20.0)[visit.study_id % 7]

    def write_record(self, root: Path, patient: Patient, visit: Visit, recording: Recording, seed: int) -> Rows:
        name = self.record_id(visit)
        folder = root / "signals"
        folder.mkdir(exist_ok=True)
        signal = recording.counts.astype(np.float32) / np.float32(self.gain)
        np.savez(folder / f"{name}.npz", signal=signal)
        row = {
            "record_id": name, "patient_id": f"P{patient_number(patient, seed):05d}", "path": f"signals/{name}.npz",
            "fs": recording.sampling_rate,
            "n": signal.shape[1], "leads": " ".join(STANDARD_LEADS), "age_years": f"{visit.age:.4f}",
            "age_days": round(visit.age * 365.25),
            "sex": "M" if patient.male else "F", "recorded": visit.time.strftime("%Y-%m-%d %H:%M:%S"),
            "report": "|".join(recording.report.statements),
        }  # fmt: skip
        return {"records.csv": [row]}

    def patient_rows(self, patient: Patient) -> Rows:
        return {}

    def write_extras(self, root: Path) -> None:
        """Nothing beyond the table."""


class Lifespan(Paediatric):
    """The same files of people from birth to 90 years, whose hearts and findings follow the norms of their age."""

    name = LIFESPAN

    def seconds(self, patient: Patient, visit: Visit, seed: int) -> float:
        return 10.0
