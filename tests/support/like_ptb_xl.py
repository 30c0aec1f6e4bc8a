"""Records with PTB-XL's name, keys, folds and super-classes, whose label is planted in the signal."""

from __future__ import annotations

import dataclasses

import numpy as np

from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.sources.base import Entry
from tests.support.planted_source import PlantedSource

SUPER = ("HYP", "NORM", "MI", "CD", "STTC")
SPEC = SignalSpec(100, 5)


class LikePtbXl(PlantedSource):
    """Class k is a taller wave in lead k, of some patients in the second half of the record alone.

    Folds 1 to 10; every sixth record is not labelled.
    """

    name = "ptb-xl"
    label_sets = ("super",)

    def entries(self) -> list[Entry]:
        return [Entry(f"ptbxl-{k + 1}", str(k), {"k": k}) for k in range(self.count)]

    def describe(self) -> dict:
        return {"name": self.name}

    def read(self, entry: Entry) -> EcgRecord:
        k = entry.meta["k"]
        draw = np.random.default_rng([k, 5])
        signal = draw.normal(0, 0.3, (12, 500))
        held = np.flatnonzero(draw.random(5) < 0.3)
        for lead in held:
            signal[lead, 300:320] += 0.8 + 0.4 * draw.random()
        return dataclasses.replace(
            super().read(entry),
            counts=np.round(signal * 1000).astype(np.int16),
            valid_samples=500,
            labels={} if k % 6 == 5 else {"super": tuple(SUPER[c] for c in held)},
            fold=1 + (k // 2) % 10,
        )
