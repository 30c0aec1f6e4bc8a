"""Plain arrays: a folder of .npy, .npz or .csv files, one record each, with an optional table of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import RecordRejected, UsageError
from cardialign.data_shards.reading.arrays import SUFFIXES, leads_first, read_array
from cardialign.data_shards.reading.voltages import COUNTS_PER_MILLIVOLT, signal_from_millivolts
from cardialign.data_shards.reading.walk import find_files
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.folder import number
from cardialign.data_shards.sources.shared.mapped_folder import MappedFolder
from cardialign.data_shards.sources.shared.record import assemble

MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "v": 1e3}
_RATES = ("fs", "sampling_rate")
_ORIENTATIONS = ("leads-first", "samples-first")


class Arrays(MappedFolder):
    """Source "arrays".

    The sampling rate is the option, or the number `fs` or `sampling_rate` of an .npz. With unit "counts", `gain` is the
    counts per mV of the files, which are kept as they are; with a voltage, it is the resolution in which they are
    stored.

    A table that lies in the folder as .csv is not taken for a record. A CSV's column that is no standard lead (time) is
    left out, and named in the record's `extra`.
    """

    name = "arrays"
    prefix = "arrays"
    layout = "one .npy, .npz or .csv file per record, at any depth"

    def __init__(
        self,
        root: Path,
        *,
        sampling_rate: float | str | None = None,
        unit: str = "mV",
        gain: float | str | None = None,
        leads: str = ",".join(STANDARD_LEADS),
        orientation: str = "",
        member: str = "",
        **mapping: Any,
    ) -> None:
        super().__init__(root, **mapping)
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
        self._rate = None if sampling_rate is None else number("sampling_rate", sampling_rate, self.name)
        self._gain = number("gain", COUNTS_PER_MILLIVOLT if gain is None else gain, self.name)
        self._millivolts = MILLIVOLTS.get(unit.casefold()) or 1 / self._gain
        self._leads = tuple(name.strip() for name in leads.replace(" ", ",").split(",") if name.strip())
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
        return (
            path for path in find_files(self.root, SUFFIXES) if (self.root / path).resolve() not in self._given_tables
        )

    def _tidy(self, path: str) -> str:
        if path.endswith(SUFFIXES):
            return path
        return next(
            (path + suffix for suffix in SUFFIXES if (self.root / (path + suffix)).is_file()), path + SUFFIXES[0]
        )

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        path = self.root / entry.path
        array = read_array(path, self._member)
        rate = self._rate or next((rate for name in _RATES if (rate := array.scalar(name))), None)
        if rate is None:
            raise RecordRejected("bad-format", f"{path} does not say its sampling rate: set the option sampling_rate")
        values, leads = leads_first(array, self._leads, self._orientation, str(path))
        signal = signal_from_millivolts(values * self._millivolts, leads, rate, str(path), self._gain)
        return assemble(signal, str(path), entry.key, source=self.name, **fields)

    def _described(self) -> dict[str, Any]:
        signal = {"sampling_rate": self._rate, "unit": self._unit, "gain": self._gain, "leads": list(self._leads)}
        return super()._described() | signal | {"orientation": self._orientation, "member": self._member}
