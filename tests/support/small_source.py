"""A small real source for these tests: synthetic but Einthoven-lawful ECG from a seed, read one record at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry

PHRASES = (
    "Sinus rhythm",
    "Atrial fibrillation",
    "Left axis deviation",
    "Anterior infarct - age undetermined",
    "Normal ECG",
    "Abnormal ECG",
)


def heart_counts(rng: np.random.Generator, samples: int, rate: float = 500.0, gain: float = 200.0) -> np.ndarray:
    """int16 (12, samples): beats of Gaussian waves on a dipole plus a little noise.

    Limb leads are rounded as devices round them.
    """
    time_s = np.arange(samples) / rate
    phase = (time_s * rng.uniform(0.9, 1.6) + rng.random()) % 1.0
    waves = [(0.2, 0.03, 0.12), (0.36, 0.012, 1.0), (0.39, 0.012, -0.25), (0.62, 0.06, 0.3)]
    dipole = np.stack(
        [sum(a * rng.normal(0.8, 0.3) * np.exp(-0.5 * ((phase - c) / w) ** 2) for c, w, a in waves) for _ in range(3)]
    )
    dipole = np.asarray(dipole) + rng.normal(0, 0.004, (3, samples))
    independent = rng.normal(0, 0.8, (8, 3)) @ dipole + rng.normal(0, 0.006, (8, samples))
    i, ii = np.round(independent[:2] * gain)
    limb = [i, ii, ii - i, np.round(-(i + ii) / 2), np.round(i - ii / 2), np.round(ii - i / 2)]
    return np.concatenate([np.stack(limb), np.round(independent[2:] * gain)]).astype(np.int16)


class SmallSource:
    """`records` records of `records // 3` patients; every 10th has no report.

    Keys of `bad` are rejected; `delay` seconds per read slow a build.
    """

    name = "small"
    root = Path(".")
    label_sets = ("rhythm", "form")

    def __init__(
        self, records: int, *, samples: int = 500, seed: int = 0, bad: tuple[int, ...] = (), delay: float = 0.0
    ) -> None:
        self.records, self.samples, self.seed, self.bad, self.delay = records, samples, seed, bad, delay

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return [Entry(f"small-{i:05d}", f"files/{i:05d}", {"number": i}) for i in range(self.records)]

    def read(self, entry: Entry) -> EcgRecord:
        number: int = entry.meta["number"]
        if self.delay:
            time.sleep(self.delay)
        if number in self.bad:
            raise RecordRejected("truncated", f"{entry.path} is cut")
        rng = np.random.default_rng([self.seed, number])
        counts = heart_counts(rng, self.samples)
        mask = np.ones(12, dtype=bool)
        quality: dict[str, tuple[str, ...]] = {}
        if number % 7 == 3:
            mask[8], counts[8], quality = False, 0, {"missing-lead": ("V3",)}
        labels: dict[str, tuple[str, ...]] = {"rhythm": ("AFIB",) if number % 4 == 0 else ("SR",)}
        if number % 2 == 0:
            labels["form"] = ("LBBB", "PVC")[: number % 3]
        patient = int(rng.integers(0, max(1, self.records // 3)))
        return EcgRecord(
            entry.key,
            counts,
            np.full(12, 200, np.float32),
            500.0,
            statements=() if number % 10 == 9 else (PHRASES[number % 2], PHRASES[2 + number % 3]),
            labels=labels,
            patient=f"p{patient}",
            fold=1 + patient % 10,
            age_years=None if number % 11 == 5 else 0.5 + number % 80,
            sex=("female", "male", None)[number % 3],
            acquired="2020-01-01T00:00:00",
            lead_mask=mask,
            valid_samples=self.samples - number % 5,
            quality=quality,
            source=self.name,
            extra={"number": number},
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "records": self.records, "samples": self.samples, "seed": self.seed}
