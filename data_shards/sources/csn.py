"""Chapman-Shaoxing-Ningbo (https://physionet.org/content/ecg-arrhythmia/): 45,152 ECGs of 10 s at 500 Hz, one per
patient, named JS00001 ..., with SNOMED CT codes in their headers."""

from __future__ import annotations

from collections.abc import Sequence

from cardialign.data_shards.sources.challenge import Challenge
from cardialign.data_shards.sources.shared.labels import Labels
from cardialign.data_shards.sources.vocabularies import snomed


class ChapmanShaoxingNingbo(Challenge):
    """Source "csn".

    Label sets: `snomed`, `challenge`, and `chapman`: the acronyms of the set's own table of condition names.

    A record none of whose codes has an acronym is not labelled in `chapman`. A code counts for its own acronym and for
    those of the findings that it is a kind of, never for one whose letters it holds: the label files of MERL match
    acronyms as parts of others (AF within AFIB, ST within STDD), which this does not repeat.
    """

    name = "csn"
    prefix = "csn"
    label_sets: tuple[str, ...] = ("snomed", "challenge", "chapman")
    layout = "Chapman-Shaoxing-Ningbo: JSnnnnn.hea and JSnnnnn.mat, at any depth (as published: WFDBRecords/)"

    def _labels(self, codes: Sequence[str]) -> Labels:
        labels = super()._labels(codes)
        acronyms = snomed.classes(codes, snomed.CHAPMAN)
        return labels | {"chapman": acronyms} if acronyms else labels
