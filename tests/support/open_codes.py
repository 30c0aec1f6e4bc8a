"""Records of a set like Chapman-Shaoxing-Ningbo, some of whose codes do not say whether a finding is there."""

from __future__ import annotations

import dataclasses

import numpy as np

from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.vocabularies import snomed
from tests.support.planted_source import PlantedSource

ST_CHANGE, ELEVATION, DEPRESSION, BRADYCARDIA = "55930002", "164931005", "429622005", "426177001"
KINDS = ((ELEVATION,), (ST_CHANGE, ELEVATION), (DEPRESSION,), (ST_CHANGE,), (BRADYCARDIA,))


class OpenCodes(PlantedSource):
    """The first lead is high with ST elevation, the second with ST depression (the others hold noise).

    "ST changes" alone is either, and both leads are high: as a negative such a record spoils what is learnt and scored.
    """

    name = "csn"
    label_sets = ("snomed", "chapman")

    def read(self, entry: Entry) -> EcgRecord:
        record, k = super().read(entry), entry.meta["k"]
        draw = np.random.default_rng([7, k])
        codes = KINDS[draw.integers(len(KINDS))]
        high = [ELEVATION in codes or codes == (ST_CHANGE,), DEPRESSION in codes or codes == (ST_CHANGE,)]
        counts = np.round(draw.normal(0, 30, record.counts.shape))
        counts[:, 20] += draw.normal(600, 100, len(counts))
        counts[:2, 20] += 500 * np.array(high)
        labels = {"snomed": codes, "chapman": snomed.classes(codes, snomed.CHAPMAN)}
        return dataclasses.replace(record, counts=counts.astype(np.int16), labels=labels, fold=1 + k // 2 % 3)

    def describe(self) -> dict:
        return {"name": self.name, "count": self.count}


def by_hand(codes: tuple[str, ...], finding: str) -> bool | None:
    """Whether a record of these codes has "STTU" or "STDD"; None where they do not say."""
    if {"STTU": ELEVATION, "STDD": DEPRESSION}[finding] in codes:
        return True
    return None if ST_CHANGE in codes else False
