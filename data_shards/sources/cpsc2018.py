"""CPSC2018 (http://2018.icbeb.org/Challenge.html): 6,877 ECGs of 6 to 60 s at 500 Hz in nine classes, in either of its
two forms.

Challenge form: .hea and .mat pairs as in PhysioNet's Challenges. Original form: one .mat per record that holds a struct
`ECG` (sex, age, data in mV, 12 x T), with the labels in a REFERENCE.csv beside them. A folder may hold both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, RecordRejected
from cardialign.data_shards.reading.mat5 import read_mat5
from cardialign.data_shards.reading.no_value import without_sentinels
from cardialign.data_shards.reading.tables import file_facts, read_table, strings
from cardialign.data_shards.reading.voltages import COUNTS_PER_MILLIVOLT, signal_from_millivolts
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.challenge import Challenge
from cardialign.data_shards.sources.shared.demographics import age_in_years, sex_in_words
from cardialign.data_shards.sources.shared.folder import number
from cardialign.data_shards.sources.shared.ids import plain_id
from cardialign.data_shards.sources.shared.labels import Labels
from cardialign.data_shards.sources.shared.matches import (
    EXAMPLES,
    STOP_BELOW,
    Agreement,
    contradictions,
    judge_agreement,
)
from cardialign.data_shards.sources.shared.record import assemble
from cardialign.data_shards.sources.vocabularies import snomed

log = logging.getLogger(__name__)

SAMPLING_RATE = 500.0
"""Hz of the original form, whose files do not say it."""
_REFERENCE_COLUMNS = ("First_label", "Second_label", "Third_label")


class Cpsc2018(Challenge):
    """Source "cpsc2018".

    Label sets: `cpsc2018` (Normal, AF, I-AVB, LBBB, RBBB, PAC, PVC, STD, STE), `snomed`, `challenge`.

    Headers give abbreviations or SNOMED CT codes; both end as classes and codes. Where a header gives none,
    REFERENCE.csv counts. Records without a label (an original form without its REFERENCE.csv) are not labelled and have
    no statement.
    """

    name = "cpsc2018"
    prefix = "cpsc2018"
    label_sets: tuple[str, ...] = ("cpsc2018", "snomed", "challenge")
    suffixes = (".mat",)
    layout = "CPSC2018: .hea and .mat pairs, or the original .mat files and REFERENCE.csv"

    def __init__(
        self,
        root: Path,
        *,
        salt: Secret | str = "",
        labels: str | Path | None = None,
        min_matched: float | str = STOP_BELOW,
        reference: str | Path | None = None,
        gain: float | str = COUNTS_PER_MILLIVOLT,
    ) -> None:
        super().__init__(root, salt=salt, labels=labels, min_matched=min_matched)
        self._gain = number("gain", gain, self.name)
        self._reference = self._table_option("reference", reference) if reference else None
        self._codes: dict[str, tuple[str, ...]] = {}

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "reference": (
                "REFERENCE.csv of the original form: Recording, First_label, ... (default: the one in the folder, if "
                "any)"
            ),
            "gain": f"counts per mV at which signals published in mV are stored (default: {COUNTS_PER_MILLIVOLT:g})",
        }

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        if self._reference is None:
            tables = list(self._find(("REFERENCE.csv",)))
            if len(tables) > 1:
                raise DataError(
                    f"{self.name}: several REFERENCE.csv: {', '.join(tables)}", "name one with the option reference"
                )
            self._reference = self.root / tables[0] if tables else None
        self._codes = reference = self._reference_codes()
        match = None if self._reference is None else self._join("reference", self._reference, len(reference))
        both = Agreement("labels", "the headers", "" if self._reference is None else self._reference.name)
        for path, key, meta in super()._listing():
            word = plain_id(path.rpartition("/")[2])
            if word in reference:  # which a header without a diagnosis has its labels from
                self._compare_classes(both, word, meta["labels"], self._known_labels(reference[word]))
            yield path, key, meta
        judge_agreement(self.name, both, self._min_matched)
        for path in self._find((".mat",)):
            name = path.removesuffix(".mat")
            if not (self.root / f"{name}.hea").is_file():
                word = plain_id(name.rpartition("/")[2])
                codes = reference.get(word, ())
                if match is not None:
                    match.add(word, word in reference)
                meta = {"statements": snomed.statements(codes), "labels": self._known_labels(codes)}
                yield path, None, meta

    def _codes_elsewhere(self, path: str) -> Sequence[str]:
        word = plain_id(path.rpartition("/")[2])
        codes = self._codes.get(word, ())
        if codes:
            self._joins["reference"].add(word, True)
        return codes

    def _compare_classes(self, both: Agreement, record: str, header: Labels, table: Labels) -> None:
        """Count whether both forms of one record give it the same classes; one of them may give none."""
        one, other = (each.get(self.name) for each in (header, table))
        if one is None or other is None:
            return
        both.records += 1
        both.agreeing += set(one) == set(other)
        if set(one) != set(other) and len(both.examples) < EXAMPLES:
            both.examples.append(f"{record} {'|'.join(one) or 'none'} and {'|'.join(other) or 'none'}")

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        if not entry.path.endswith(".mat"):
            return super()._read(entry, fields)
        path = self.root / entry.path
        data, fields["age_years"], fields["sex"] = _read_struct(path)
        signal = signal_from_millivolts(without_sentinels(data), STANDARD_LEADS, SAMPLING_RATE, str(path), self._gain)
        return assemble(signal, str(path), entry.key, source=self.name, **fields)

    def _labels(self, codes: Sequence[str]) -> Labels:
        found = snomed.classes(codes, snomed.CPSC2018)
        if len(set(codes)) > 1:  # sinus rhythm beside a finding: the rhythm is normal, the ECG is not
            found = tuple(name for name in found if name != snomed.CPSC2018_CLASSES[0])
        return super()._labels(codes) | {"cpsc2018": found}

    def _described(self) -> dict[str, Any]:
        return {"gain": self._gain}

    def _reference_codes(self) -> dict[str, tuple[str, ...]]:
        """Record name -> codes of its one to three labels, which REFERENCE.csv gives as 1..9 in the order of
        CPSC2018_CLASSES."""
        if self._reference is None:
            return {}
        table = read_table(self._reference, ("Recording", "First_label"), optional=_REFERENCE_COLUMNS[1:])
        self._facts["reference"] = file_facts(self._reference, table.num_rows)
        columns = [strings(table, name) for name in _REFERENCE_COLUMNS if name in table.column_names]
        result: dict[str, tuple[str, ...]] = {}
        odd: dict[str, None] = {}
        for record, *numbers in zip(strings(table, "Recording"), *columns, strict=True):
            name = plain_id(record).removesuffix(".mat")
            places = [word for text in numbers if (word := plain_id(text))]
            if not all(word in _CODE_OF_NUMBER for word in places):
                raise DataError(
                    f"{self._reference}: {record} has the labels {places}, expected numbers from 1 to 9",
                    "correct this row",
                )
            codes = tuple(_CODE_OF_NUMBER[word] for word in places)
            if result.setdefault(name, codes) != codes:
                odd[name] = None
        contradictions(self.name, self._reference, "reference", list(odd), len(odd))
        return result


_CODE_OF_NUMBER = {str(i): snomed.code_of(name) for i, name in enumerate(snomed.CPSC2018_CLASSES, start=1)}


def _read_struct(path: Path) -> tuple[np.ndarray, float | None, str | None]:
    """The struct `ECG` of an original file: data (12, T) in mV, age in years, sex."""
    try:
        fields = read_mat5(path, "ECG")
        if not isinstance(fields, dict) or not isinstance(fields.get("data"), np.ndarray):
            raise ValueError("'ECG' is no struct with the array 'data'")
    except FileNotFoundError:
        raise RecordRejected("missing-file", f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RecordRejected("bad-format", f"{path}: no readable MATLAB struct 'ECG' with 'data': {error}") from None
    data, age, sex = np.asarray(fields["data"]), _first(fields.get("age", "")), _first(fields.get("sex", ""))
    return data, age_in_years(age), sex_in_words(sex)


def _first(value: Any) -> str:
    """The content of a 1 x 1 MATLAB value, "" for an empty one."""
    flat = np.asarray(value).reshape(-1)
    return str(flat[0]) if flat.size else ""
