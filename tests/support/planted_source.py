"""Records whose label is planted in the signal, so that what an evaluation must find is known.

UP and DOWN deflections, FAST pulses, and neither.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry

WORDS = {"UP": "Tall upright deflections", "DOWN": "Deep inverted deflections", "FAST": "Very rapid rhythm"}
RECORDS_PER_PATIENT = 2


class PlantedSource:
    """`count` records of 2 s at 100 Hz, two per patient, folds 1 and 2.

    Every seventh is not labelled; RARE is never present.
    """

    name = "planted"
    label_sets = ("finding",)

    def __init__(self, root: Path, count: int = 120) -> None:
        self.root, self.count = root, count

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return [Entry(f"planted-{k:04d}", str(k), {"k": k}) for k in range(self.count)]

    def read(self, entry: Entry) -> EcgRecord:
        k = entry.meta["k"]
        rng = np.random.default_rng(k)
        codes = tuple(code for code, share in (("UP", 0.35), ("FAST", 0.3)) if rng.random() < share)
        if "UP" not in codes and rng.random() < 0.5:
            codes = ("DOWN", *codes)
        period = 25 if "FAST" in codes else 67
        pulse = np.exp(-0.5 * (((np.arange(200) + rng.integers(period)) % period - 10) / 3) ** 2)
        sign = 1.0 if "UP" in codes else -1.0 if "DOWN" in codes else 0.3
        leads = np.outer(rng.uniform(0.7, 1.3, 12), sign * pulse) + rng.normal(0, 0.05, (12, 200))
        return EcgRecord(
            key=entry.key,
            counts=np.round(leads * 1000).astype(np.int16),
            gain=np.full(12, 1000, dtype=np.float32),
            sampling_rate=100.0,
            statements=tuple(WORDS[code] for code in codes) or ("Nothing remarkable",),
            labels={} if k % 7 == 6 else {"finding": codes},
            patient=f"patient-{k // RECORDS_PER_PATIENT}",
            fold=1 + (k // RECORDS_PER_PATIENT) % 2,
            source="planted",
        )

    def describe(self) -> dict:
        return {"source": self.name, "count": self.count}


class ThreeFolds(PlantedSource):
    """The same in folds 1, 2 and 3."""

    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 3)


PROMPTS = """
name: planted-v1
version: 1
label_set: finding
style: the words of the planted reports
classes:
  UP: {name: Upright, prompts: ["Tall upright deflections", "Upright deflections"]}
  DOWN: {name: Inverted, prompts: ["Deep inverted deflections"]}
  FAST: {name: Fast, prompts: ["Very rapid rhythm", "Rapid rhythm"]}
  RARE: {name: Rare thing, prompts: ["Something that never occurs"]}
"""
