"""Plain arrays: a folder of .npy, .npz or .csv files, one record each, with an optional table of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected, UsageError
from cardialign.data_shards.reading.arrays import BASELINES, GAINS, RATES, SUFFIXES, ArrayFile, leads_first, read_array
from cardialign.data_shards.reading.csv_signal import same_leads
from cardialign.data_shards.reading.no_value import without_sentinels
from cardialign.data_shards.reading.units import is_counts, millivolts_of
from cardialign.data_shards.reading.voltages import COUNTS_PER_MILLIVOLT, signal_from_millivolts
from cardialign.data_shards.reading.wfdb.leads import name_and_unit, row_of, rows_of
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.signal.limb_leads import other_order
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.folder import number
from cardialign.data_shards.sources.shared.mapped_folder import MappedFolder
from cardialign.data_shards.sources.shared.record import assemble

_SCALES = (
    *("scale", "scale_factor", "scaling_factor", "conversion_factor", "multiplier", "lsb", "resolution"),
    *("amplitude_resolution", "mv_per_count", "uv_per_count", "nv_per_count", "mv_per_lsb", "uv_per_lsb", "nv_per_lsb"),
)
"""What one count is worth, the other way round than a gain."""
_OF_ROUNDED_TIMES = 1e-5
"""By so much may a rate miss a whole number because the times of a table are rounded."""
_ORIENTATIONS = ("leads-first", "samples-first")


class Arrays(MappedFolder):
    """Source "arrays".

    Sampling rate, unit and leads are the options, or what an .npz says beside its signal (`fs`, `unit`, `leads`) and a
    CSV in its first line (`I (uV)`); a file that an option contradicts is rejected with both. With unit "counts",
    `gain` is the counts per mV of the files, which are kept as they are, and may stand in each of them; with a voltage,
    it is the resolution in which they are stored.

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
        if millivolts_of(unit) is None and not is_counts(unit):
            raise UsageError(f"{self.name}: unit is {unit!r}", "choose mV, uV, V or counts")
        if orientation and orientation not in _ORIENTATIONS:
            raise UsageError(
                f"{self.name}: orientation is {orientation!r}", f"choose one of {', '.join(_ORIENTATIONS)}"
            )
        self._counts = is_counts(unit)
        self._counts_per_mv = None if gain is None or not self._counts else number("gain", gain, self.name)
        self._rate = None if sampling_rate is None else number("sampling_rate", sampling_rate, self.name)
        self._gain = number("gain", COUNTS_PER_MILLIVOLT if gain is None else gain, self.name)
        self._millivolts = millivolts_of(unit) or 1 / self._gain
        self._leads_given = tuple(name.strip() for name in (leads or "").replace(" ", ",").split(",") if name.strip())
        self._leads = self._leads_given or STANDARD_LEADS
        self._orientation, self._member, self._unit = orientation, member, unit

    @classmethod
    def options(cls) -> dict[str, str]:
        return super().options() | {
            "sampling_rate": "Hz of the files (default: fs or sampling_rate of an .npz, the times of a CSV)",
            "unit": "unit of the files: mV, uV, V or counts (default: mV)",
            "gain": (
                "counts per mV: of the files (unit counts; default: what each says), else of what is stored (default: "
                f"{COUNTS_PER_MILLIVOLT:g})"
            ),
            "leads": "lead names in the order of the files, with commas (default: the twelve standard leads)",
            "orientation": "leads-first or samples-first (default: the side that has one entry per lead)",
            "member": "array of an .npz that holds the signal (default: its only 2-D array)",
        }

    def _files(self) -> Iterator[str]:
        for path in self._find(SUFFIXES):
            if not self._is_table(path):
                yield path
        self._unseen[:] = [each for each in self._unseen if not self._is_table(each.path)]

    def _is_table(self, path: str) -> bool:
        return (self.root / path).resolve() in self._given_tables

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
        if disorder := array.disorder():
            raise RecordRejected("bad-format", f"{path}: {disorder}")
        rate = array.agreed(self._rate, RATES, "the option sampling_rate", str(path))
        if rate is None and len(of_times := array.rates()) == 1:
            whole = float(round(of_times[0]))
            rate = whole if abs(of_times[0] - whole) < _OF_ROUNDED_TIMES * whole else of_times[0]
        if rate is None:
            raise RecordRejected(
                "bad-format",
                f"{path} does not say its sampling rate: set the option sampling_rate (--record-rate of a command)",
            )
        named = [name_and_unit(name) for name in array.columns or array.leads((), "", str(path))]
        names = self._called(name for name, _ in named)
        self._check_leads(names, bool(array.columns), path)
        self._check_times(array, rate, path)
        scale, gain = self._scale(array, named, path)
        if array.columns:
            array = replace(array, columns=names)
        values, leads = leads_first(array, names or self._leads, self._orientation, str(path))
        values = without_sentinels(values)
        if array.columns:  # what is no lead is left out, and may hold anything: times since 1970 are no voltages
            values = np.where(np.array(rows_of(leads)[0])[:, np.newaxis] < 0, 0, values)
        if not names and not self._leads_given and (order := other_order(values * scale)):
            raise RecordRejected(
                "bad-format",
                f"{path}: nothing says the order of its leads, and its limb leads are not in the standard one but as "
                f"in {order}: set the option leads",
            )
        signal = signal_from_millivolts(values * scale, leads, rate, str(path), gain)
        return assemble(signal, str(path), entry.key, source=self.name, **fields)

    def _scale(
        self, array: ArrayFile, named: Sequence[tuple[str, str]], path: Path
    ) -> tuple[float | np.ndarray, float | np.ndarray]:
        """mV of 1 in the file, for all leads or (L, 1), and the counts per mV to store, for all or (L,). Raises
        RecordRejected where unit, gain or baseline of the file are not those of the options, or are in doubt."""
        units = array.said_units()
        for told in units:
            if millivolts_of(told) is None and not is_counts(told):
                raise RecordRejected(
                    "bad-format", f"{path} says its unit is {told[:40]!r}, expected mV, uV, V or counts"
                )
        gains = self._gains_of(array, path)
        per_count = self._counts and gains is not None  # then the unit of the file is that of its gain
        for told in (*(() if per_count else units), *(unit for _, unit in named if unit)):
            if self._unit_given is not None and not self._is_given(told):
                raise RecordRejected(
                    "bad-format",
                    f"{path} says its unit is {told}, the option unit says {self._unit_given}; correct the file, or "
                    "leave out the option",
                )
        scale = self._scale_of_units([millivolts_of(told) or 1.0 for told in units], array, path)
        if self._counts or any(map(is_counts, units)):
            return self._scale_of_counts(array, gains, scale, len({is_counts(told) for told in units}) > 1, path)
        if self._unit_given is None and array.whole:
            zero = next((name for name in BASELINES if any(array.numbers(name))), None)
            zero = zero or next((name for name in _SCALES if set(array.numbers(name)) - {0, 1}), None)
            if gains is not None or zero is not None:
                told = f"a {zero}" if gains is None else f"a gain of {gains.flat[0]:g}"
                raise RecordRejected(
                    "bad-format", f"{path} holds whole numbers and {told}: set the options unit (counts) and gain"
                )
        in_names = self._scale_in_names(named, path)
        if in_names is not None:
            if units and (in_names != scale).any():
                raise RecordRejected("bad-format", f"{path}: its unit is not the one in the names of its leads")
            return in_names, self._gain
        return (scale if units else self._millivolts), self._gain

    def _is_given(self, unit: str) -> bool:
        assert self._unit_given is not None
        return millivolts_of(unit) == millivolts_of(self._unit_given) and is_counts(unit) == self._counts

    def _scale_of_units(self, factors: list[float], array: ArrayFile, path: Path) -> float | np.ndarray:
        if len(set(factors)) <= 1:
            return factors[0] if factors else 1.0
        if len(factors) not in array.values.shape:
            raise RecordRejected("bad-format", f"{path} says {len(factors)} units for {array.values.shape} values")
        return np.array(factors)[:, np.newaxis]

    def _scale_in_names(self, named: Sequence[tuple[str, str]], path: Path) -> np.ndarray | None:
        """What the names of leads say of their units (`I (uV)`), None where they say nothing."""
        if not any(unit for _, unit in named):
            return None
        without = [name for name, unit in named if not unit and row_of(name) is not None]
        if without:
            raise RecordRejected(
                "bad-format", f"{path}: some leads have a unit in their names, {', '.join(without)[:200]} has none"
            )
        return np.array([millivolts_of(unit) or 1.0 for _, unit in named])[:, np.newaxis]

    def _gains_of(self, array: ArrayFile, path: Path) -> np.ndarray | None:
        """The gains that a file has, one or one for each lead; None without."""
        found: dict[str, np.ndarray] = {}
        for name in GAINS:
            numbers = array.numbers(name)
            one = array.scalar(name)
            if not numbers and one is not None:  # written as text
                numbers = [one]
            if numbers:
                found[name] = np.array(numbers, dtype=np.float64)
        gains = next(iter(found.values()), None)
        for name, each in found.items():
            if gains is not None and not np.array_equal(each, gains):
                raise RecordRejected("bad-format", f"{path}: {next(iter(found))} and {name} are two gains")
        return gains

    def _scale_of_counts(
        self, array: ArrayFile, gains: np.ndarray | None, unit: float | np.ndarray, mixed: bool, path: Path
    ) -> tuple[float | np.ndarray, float | np.ndarray]:
        """unit: mV of the unit that the gains of the file are per."""
        for name in BASELINES:
            if any(array.numbers(name)):
                raise RecordRejected(
                    "bad-format", f"{path}: its {name} is not 0; save the signal without it, or in mV (unit mV)"
                )
        if mixed:
            raise RecordRejected("bad-format", f"{path} holds counts in some leads only: save all leads in one unit")
        if self._counts_per_mv is not None:
            array.agreed(self._counts_per_mv, GAINS, "the option gain", str(path))
            return self._millivolts, self._gain
        if gains is None:
            raise RecordRejected(
                "bad-format", f"{path} holds counts, and does not say how many are 1 mV: set the options unit and gain"
            )
        per_mv = gains / np.ravel(unit)
        if per_mv.size not in (1, *array.values.shape) or not (np.isfinite(per_mv) & (per_mv > 0)).all():
            raise RecordRejected(
                "bad-format",
                f"{path}: {per_mv.size} gains from {gains.min():g} to {gains.max():g} for {array.values.shape} values",
            )
        return 1 / per_mv[:, np.newaxis], per_mv

    def _check_leads(self, names: Sequence[str], columns: bool, path: Path) -> None:
        """Raises RecordRejected where the file names other leads than the option. columns: some may be no leads."""
        leads = [name for name in names if not columns or row_of(name) is not None]
        if leads and self._leads_given and not same_leads(leads, self._leads_given):
            raise RecordRejected(
                "bad-format",
                f"{path} has the leads {', '.join(leads)[:200]}, the option leads says "
                f"{', '.join(self._leads_given)[:200]}; correct the file, or leave out the option",
            )

    def _check_times(self, array: ArrayFile, rate: float, path: Path) -> None:
        """Raises RecordRejected where the times of a file contradict the rate."""
        told = array.rates()
        if told and not any(abs(each - rate) <= 0.01 * rate for each in told):
            raise RecordRejected(
                "bad-format",
                f"{path}: its times are {1 / told[0]:.6g} apart, which is {' or '.join(f'{each:g}' for each in told)} "
                f"Hz, not the {rate:g} Hz of the option sampling_rate",
            )

    def _described(self) -> dict[str, Any]:
        signal = {"sampling_rate": self._rate, "unit": self._unit, "gain": self._gain, "leads": list(self._leads)}
        return super()._described() | signal | {"orientation": self._orientation, "member": self._member}
