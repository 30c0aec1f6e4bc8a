"""PhysioNet/CinC Challenge 2020 and 2021 (https://physionet.org/content/challenge-2021/): any folder of .hea and .mat
pairs, at any depth.

Age, sex and diagnoses stand in the comments of the headers: `#Age: 59`, `#Sex: Male`, `#Dx: 164889003,59118001`; `#
Dx:` with a space, an empty one, `NaN` and abbreviations instead of codes all occur.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import header_comments
from cardialign.data_shards.sources.shared.folder import RecordFolder
from cardialign.data_shards.sources.shared.labels import Labels
from cardialign.data_shards.sources.shared.record import read_ecg
from cardialign.data_shards.sources.vocabularies import snomed

log = logging.getLogger(__name__)


class Challenge(RecordFolder):
    """Source "challenge".

    Label sets: `snomed` (the codes as given) and `challenge` (the 26 classes scored in 2021; empty when a record's
    codes say none of them). A record with an empty Dx is not labelled, and one all of whose codes are unknown here is
    labelled in `snomed` alone: what it has is not known, so it is no negative. Statements are written from the codes.
    """

    name = "challenge"
    prefix = "challenge"
    label_sets: tuple[str, ...] = ("snomed", "challenge")
    layout = "the .hea and .mat files of a Challenge, at any depth"

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        unknown: Counter[str] = Counter()
        blank = 0
        for header in self._find((".hea",)):
            comments = header_comments(self.root / header)
            codes = snomed.parse_dx(comments.get("dx", "")) or self._codes_elsewhere(header.removesuffix(".hea"))
            unknown += snomed.unknown(codes)
            blank += not codes
            yield header.removesuffix(".hea"), None, self._meta(comments, codes)
        if blank:
            log.warning("records without a diagnosis source=%s records=%d", self.name, blank)
        if unknown:
            listed = " ".join(f"{code}={count}" for code, count in sorted(unknown.items()))
            log.warning("codes without a name are kept as labels, without a statement source=%s %s", self.name, listed)

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        return read_ecg(self.root / entry.path, entry.key, source=self.name, **fields)

    def _codes_elsewhere(self, path: str) -> Sequence[str]:
        """The codes of a record whose header gives none."""
        return ()

    def _meta(self, comments: Mapping[str, str], codes: Sequence[str]) -> dict[str, Any]:
        return {
            "statements": snomed.statements(codes),
            "labels": self._known_labels(codes),
            **self._person(comments),
        }

    def _known_labels(self, codes: Sequence[str]) -> Labels:
        if codes and len(snomed.unknown(codes)) == len(codes):
            return {"snomed": tuple(codes)}
        return self._labels(codes) if codes else {}

    def _labels(self, codes: Sequence[str]) -> Labels:
        return {"snomed": tuple(codes), "challenge": snomed.classes(codes, snomed.SCORED)}
