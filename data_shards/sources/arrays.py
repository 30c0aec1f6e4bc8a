"""Plain arrays: a folder of .npy, .npz or .csv files, one record each, with an optional table of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected, UsageError
from cardialign.data_shards.reading.arrays import RATES, SUFFIXES, UNITS, ArrayFile, leads_first, read_array
from cardialign.data_shards.reading.csv_signal import rates_of_time, same_leads
from cardialign.data_shards.reading.voltages import COUNTS_PER_MILLIVOLT, signal_from_millivolts
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.folder import number
from cardialign.data_shards.sources.shared.mapped_folder import MappedFolder
from cardialign.data_shards.sources.shared.record import assemble

MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "v": 1e3}
_GAINS = ("gain", "adc_gain", "counts_per_mv")
_BASELINES = ("baseline", "adc_zero")
_ORIENTATIONS = ("leads-first", "samples-first")


def _unit(word: str) -> str:
    """One of MILLIVOLTS or "counts", or what else the file says; both characters for micro are u."""
    return word.strip().replace("\u00b5", "u").replace("\u03bc", "u").casefold()


class Arrays(MappedFolder):
    """Source "arrays".

    Sampling rate, unit and leads are the options, or what an .npz says beside its signal (`fs`, `unit`, `leads`); a
    file that an option contradicts is rejected with both. With unit "counts", `gain` is the
    counts per mV of the files, which are kept as they are; with a voltage, it is the resolution in which they are
    stored.

    A table that lies in the folder as .csv is not taken for a record. A CSV's column that is no standard lead (time) is
    left out, and named in the record's `extra`.
    """

    name = "arrays"
    prefix = "arrays"
    suffixes = SUFFIXES
    layout = "one .npy, .npz or .csv file per record, at any depth"

    def __init__(
        self,
        root: Path,
        *,
        sampling_rate: float | str | None = None,
        unit: str | None = None,
        gain: float | str | None = None,
        leads: str | None = None,
        orientation: str = "",
        member: str = "",
        **mapping: Any,
    ) -> None:
        super().__init__(root, **mapping)
        self._unit_given, unit = unit, unit or "mV"
        if unit.casefold() not in (*MILLIVOLTS, "counts"):
            raise UsageError(f"{self.name}: unit is {unit!r}", "choose mV, uV, V or counts")
        if unit.casefold() == "counts" and gain is None:
            raise UsageError(
                f"{self.name}: unit is counts, but not how many of them are 1 mV", "set gain to the counts per mV"
            )
        if orientation and orientation not in _ORIENTATIONS:
            raise UsageError(
                f"{self.name}: orientation is {orientation!r}", f"choose one of {', '.join(_ORIENTATIONS)}"
            )
        self._counts_per_mv = None if gain is None or unit.casefold() != "counts" else number("gain", gain, self.name)
        self._rate = None if sampling_rate is None else number("sampling_rate", sampling_rate, self.name)
        self._gain = number("gain", COUNTS_PER_MILLIVOLT if gain is None else gain, self.name)
        self._millivolts = MILLIVOLTS.get(unit.casefold()) or 1 / self._gain
        self._leads_given = tuple(name.strip() for name in (leads or "").replace(" ", ",").split(",") if name.strip())
        self._leads = self._leads_given or STANDARD_LEADS
        self._orientation, self._member, self._unit = orientation, member, unit

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "sampling_rate": "Hz of the files (default: the number fs or sampling_rate of an .npz)",
            "unit": "unit of the files: mV, uV, V or counts (default: mV)",
            "gain": (
                f"counts per mV: of the files (unit counts), else of what is stored (default: {COUNTS_PER_MILLIVOLT:g})"
            ),
            "leads": "lead names in the order of the files, with commas (default: the twelve standard leads)",
            "orientation": "leads-first or samples-first (default: the side that has one entry per lead)",
            "member": "array of an .npz that holds the signal (default: its only 2-D array)",
        }

    def _files(self) -> Iterator[str]:
        return (path for path in self._find(SUFFIXES) if (self.root / path).resolve() not in self._given_tables)

    def _names_of(self, path: str) -> list[str]:
        name = path.rpartition("/")[2]
        return [name, self._stem(name), path, path[: len(path) - len(name)] + self._stem(name)]

    def _tidy(self, path: str) -> str:
        if path.endswith(SUFFIXES):
            return path
        return next(
            (path + suffix for suffix in SUFFIXES if os.path.isfile(self.root / (path + suffix))), path + SUFFIXES[0]
        )

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        path = self.root / entry.path
        array = read_array(path, self._member)
        rate = array.agreed(self._rate, RATES, "the option sampling_rate", str(path))
        if rate is None:
            raise RecordRejected(
                "bad-format",
                f"{path} does not say its sampling rate: set the option sampling_rate (--record-rate of a command)",
            )
        self._check_columns(array, rate, path)
        values, leads = leads_first(
            array, array.leads(self._leads_given, "the option leads", str(path)) or self._leads, self._orientation,
            str(path),
        )  # fmt: skip
        signal = signal_from_millivolts(values * self._scale(array, path), leads, rate, str(path), self._gain)
        return assemble(signal, str(path), entry.key, source=self.name, **fields)

    def _scale(self, array: ArrayFile, path: Path) -> float | np.ndarray:
        """mV of 1 in the file, for all leads or (L, 1). Raises RecordRejected where its unit, gain or baseline is not
        that of the options."""
        units = [_unit(word) for word in next(filter(None, map(array.words, UNITS)), ())]
        for told in units:
            if told not in MILLIVOLTS and told != "counts":
                raise RecordRejected(
                    "bad-format", f"{path} says its unit is {told[:40]!r}, expected mV, uV, V or counts"
                )
            if told != (self._unit_given or told).casefold():
                raise RecordRejected(
                    "bad-format",
                    f"{path} says its unit is {told}, the option unit says {self._unit_given}; correct the file, or "
                    "leave out the option",
                )
        if self._counts_per_mv is not None or "counts" in units:
            return self._scale_of_counts(array, units, path)
        if not units:
            gain = array.agreed(None, _GAINS, "", str(path)) if array.values.dtype.kind in "iu" else None
            if gain is not None and self._unit_given is None:
                raise RecordRejected(
                    "bad-format",
                    f"{path} holds whole numbers and a gain of {gain:g}: set the options unit (counts) and gain",
                )
            return self._millivolts
        if len(set(units)) == 1:
            return MILLIVOLTS[units[0]]
        if len(units) not in array.values.shape:
            raise RecordRejected("bad-format", f"{path} says {len(units)} units for {array.values.shape} values")
        return np.array([MILLIVOLTS[told] for told in units])[:, np.newaxis]

    def _scale_of_counts(self, array: ArrayFile, units: list[str], path: Path) -> float:
        array.agreed(self._counts_per_mv, _GAINS, "the option gain", str(path))
        if self._counts_per_mv is None or len(set(units)) > 1:
            raise RecordRejected("bad-format", f"{path} holds counts: set the options unit and gain")
        for name in _BASELINES:
            if any(array.numbers(name)):
                raise RecordRejected(
                    "bad-format", f"{path}: its {name} is not 0; save the signal without it, or in mV (unit mV)"
                )
        return self._millivolts

    def _check_columns(self, array: ArrayFile, rate: float, path: Path) -> None:
        """Raises RecordRejected where a CSV's own names or times contradict the options."""
        known = {name.casefold() for name in STANDARD_LEADS}
        leads = [name for name in array.columns if name.casefold() in known]
        if leads and self._leads_given and not same_leads(leads, self._leads_given):
            raise RecordRejected(
                "bad-format",
                f"{path} names the leads {', '.join(leads)}, the option leads {', '.join(self._leads_given)}; leave "
                "out the option",
            )
        told = rates_of_time(array.columns, array.values)
        if told and not any(abs(each - rate) <= 0.01 * rate for each in told):
            raise RecordRejected(
                "bad-format",
                f"{path}: its times are {1 / told[0]:.6g} apart, which is {' or '.join(f'{each:g}' for each in told)} "
                f"Hz, not the {rate:g} Hz of the option sampling_rate",
            )

    def _described(self) -> dict[str, Any]:
        signal = {"sampling_rate": self._rate, "unit": self._unit, "gain": self._gain, "leads": list(self._leads)}
        return super()._described() | signal | {"orientation": self._orientation, "member": self._member}
