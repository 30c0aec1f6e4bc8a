"""Signals in plain files: .npy and .npz, read without ever running what is in them, and the way to .csv
(`reading.csv_signal`).

What an array claims is judged before memory is taken for it, and of an .npz only what is asked for is read.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from cardialign.data_shards.array_files import array_header, bytes_claimed
from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import UNREADABLE_ARRAY
from cardialign.data_shards.reading.array_facts import letters, with_inner_facts
from cardialign.data_shards.reading.clocks import rates_of_time, rows_out_of_order
from cardialign.data_shards.reading.csv_signal import is_number, read_csv_signal, same_leads
from cardialign.data_shards.reading.tables import MISSING
from cardialign.data_shards.reading.units import hertz_of, millivolts_of
from cardialign.data_shards.reading.wfdb.leads import row_of

SUFFIXES = (".npy", ".npz", ".csv")
LARGEST = 1 << 29
"""Bytes of a signal; a day of twelve leads at 250 Hz in int16 just fits."""
LARGEST_FACT = 1 << 16
"""Bytes of an array beside the signal (a rate, lead names) that is looked at."""
RATES = (
    *("fs", "sampling_rate", "sample_rate", "sampling_frequency", "sample_frequency", "sampling_freq", "sample_freq"),
    *("sfreq", "sf", "fsamp", "frequency", "freq", "srate", "sr", "hz"),
)
"""Names under which arrays give their sampling rate in Hz; case and marks apart (`samplingRate`), and with a `_hz` at
the end, too."""
PERIODS = (
    *("dt", "delta_t", "period", "sampling_period", "sample_period", "interval", "sampling_interval"),
    *("sample_interval", "time_step", "step"),
)
"""Names under which arrays give the time between two samples; case and marks apart, and with a unit at the end, too
(`dt_ms`)."""
LEADS = (
    *("leads", "lead_names", "lead_order", "channels", "channel_names", "ch_names"),
    *("sig_name", "sig_names", "signal_names"),
)
UNITS = ("unit", "units", "signal_unit", "signal_units", "physical_unit", "physical_units", "phys_unit")
GAINS = ("gain", "adc_gain", "counts_per_mv", "gains", "adc_gains", "counts_per_millivolt")
BASELINES = ("baseline", "adc_zero")
_NO_HEART_RATE = 250
"""From here on a number called `rate` is one of samples, not of beats."""
_OF_SAMPLES = tuple(name for name in RATES if "fs" in name or "samp" in name or name in ("sfreq", "srate"))
"""Those that are the rate of samples, and of nothing else (a frequency may be that of a filter)."""
_PER_SECOND = {"": 1.0, "s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e3, "us": 1e6}


_FACTS = frozenset(map(letters, (*RATES, *PERIODS, *LEADS, *UNITS, *GAINS, *BASELINES)))


@dataclass(frozen=True)
class ArrayFile:
    """values: the signal as stored, 2-D; columns: the names of a CSV's columns, () without; others: the small further
    arrays of an .npz, or what a CSV says in its comments."""

    values: np.ndarray
    columns: tuple[str, ...] = ()
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def scalar(self, name: str) -> float | None:
        """The single number called `name`, written as a number or as text (`500 Hz`, `0.5 kHz`), once or once for each
        lead; None when there is none."""
        value = self._named(name)
        if value is None or not value.size or value.dtype.kind not in "iufUS":
            return None
        if value.size > 1 and (value != value.flat[0]).any():
            return None
        word = _text(value.flat[0]).strip().casefold()
        return float(word) if word and is_number(word) else hertz_of(word)

    def numbers(self, name: str) -> list[float]:
        """All numbers of the array called `name`, [] when there is none."""
        value = self._named(name)
        return value.reshape(-1).tolist() if value is not None and value.dtype.kind in "iuf" else []

    def words(self, name: str) -> tuple[str, ...]:
        """The array of words called `name`, () when there is none."""
        value = self._named(name)
        return tuple(map(_text, value.reshape(-1).tolist())) if value is not None and value.dtype.kind in "US" else ()

    def agreed(self, given: float | None, names: Sequence[str], giver: str, where: str) -> float | None:
        """The number that the file has under one of `names`, or `given` by `giver`; None when neither says.

        Raises RecordRejected("bad-format") that names both where they differ, and where the file has another one for
        each lead.
        """
        for name in names:
            array = self._named(name)
            if array is None or not array.size or array.dtype.kind not in "iuf" or array.size not in self.values.shape:
                continue
            if (array != array.flat[0]).any():
                raise RecordRejected(
                    "bad-format", f"{where}: {name} says {array.min():g} to {array.max():g}, expected one for all"
                )
        told = {name: value for name in names if (value := self.scalar(name)) is not None}
        if names is RATES:
            self._add_rates(told, where)
        if given is not None:
            told[giver] = given
        if len(set(told.values())) > 1:
            said = ", ".join(f"{name} says {value:g}" for name, value in told.items())
            raise RecordRejected("bad-format", f"{where}: {said}; correct the file, or leave out what contradicts it")
        return next(iter(told.values()), None)

    def _add_rates(self, told: dict[str, float], where: str) -> None:
        """Rates in kHz, and one that is called `rate` alone. Raises RecordRejected for a rate of samples in words that
        are not understood: passed over, an option would contradict it."""
        if (rate := self.scalar("rate")) is not None and rate >= _NO_HEART_RATE:
            told["rate"] = rate
        for name in RATES:
            value = self.scalar(f"{name}_khz")
            if value is not None:
                told[f"{name}_khz"] = 1000 * value
            words = self.words(name) if name in _OF_SAMPLES and name not in told else ()
            if words and words[0].strip().casefold() not in MISSING:
                raise RecordRejected(
                    "bad-format", f"{where}: {name} says {words[0].strip()[:40]!r}, expected a number of Hz"
                )

    def times(self) -> tuple[list[str], np.ndarray]:
        """Names and values (samples, columns) of what may be times: the columns of a CSV, or the arrays of an .npz that
        have one number for each sample."""
        if self.columns:
            return list(self.columns), self.values
        samples = max(self.values.shape)
        found = {
            name: each for name, each in self.others.items() if each.shape == (samples,) and each.dtype.kind in "iuf"
        }
        return list(found), np.stack(list(found.values()), axis=1) if found else np.empty((0, 0))

    def disorder(self) -> str:
        """Where the times or numbers of its samples are out of order or leave some out, in words; "" where not."""
        return rows_out_of_order(*self.times())

    def rates(self) -> list[float]:
        """Hz that the times of its samples, or the time between two of them, may mean; [] when it says neither."""
        told = rates_of_time(*self.times())
        for name in self.others if not told else ():
            step = self.scalar(name)
            for period, (unit, per_second) in product(PERIODS, _PER_SECOND.items()):
                if step is not None and step > 0 and letters(name) == letters(period) + unit:
                    return [per_second / step] if unit else [each / step for each in (1.0, 1e3, 1e6)]
        return told

    def said_units(self) -> list[str]:
        """The words for units, one or one for each lead, under the names of UNITS or under another one that speaks of a
        unit and holds units of voltage; [] when there are none."""
        others = [name for name in self.others if "unit" in letters(name)]
        found = list(next(filter(None, map(self.words, UNITS)), ()))
        of_others = [list(self.words(name)) for name in others]
        return found or next((each for each in of_others if each and all(map(millivolts_of, each))), [])

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers, as counts are, whatever type holds them."""
        kept = self.values[np.isfinite(self.values)] if self.values.dtype.kind == "f" else self.values[:0, 0]
        return bool((kept == np.rint(kept)).all())

    def leads(self, given: Sequence[str], giver: str, where: str) -> tuple[str, ...]:
        """The lead names of the file, or those `given` by `giver`; () when neither says.

        Raises RecordRejected("bad-format") that names both where they differ.
        """
        told = next((words for name in LEADS if (words := self.words(name))), ()) or self._words_for_leads()
        if told and given and not same_leads(told, given):
            raise RecordRejected(
                "bad-format",
                f"{where} has the leads {', '.join(told)[:200]}, {giver} says {', '.join(given)[:200]}; correct the "
                "file, or leave out what contradicts it",
            )
        return told or tuple(given)

    def _words_for_leads(self) -> tuple[str, ...]:
        """The array, whatever its name, that holds a standard lead for each lead of the signal; () without."""
        for name in self.others:
            words = self.words(name)
            each_lead = len(words) > 1 and len(words) in self.values.shape
            if each_lead and all(row_of(word) is not None for word in words):
                return words
        return ()

    def _named(self, name: str) -> np.ndarray | None:
        """Case and marks apart: `Fs` is `fs`, `samplingRate` and `sampling_rate_hz` are `sampling_rate`."""
        wanted = (letters(name), letters(name) + "hz")
        return next((value for each, value in self.others.items() if letters(each) in wanted), None)


def read_array(path: Path, member: str = "") -> ArrayFile:
    """Read one signal. member: which array of an .npz (default: its only 2-D one).

    Raises RecordRejected: missing-file, and bad-format for anything that is no 2-D array of numbers, for one that
    claims more than LARGEST bytes or more than the file holds, and for pickled objects.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would hold up whoever opens it
            raise RecordRejected("bad-format", f"{path}: not a file")
        if path.suffix == ".csv":
            text = read_csv_signal(path)
            return ArrayFile(_checked(text.values, path), text.columns, text.facts)
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_npz(path, member)
            file.seek(0)
            shape, _, dtype = array_header(file)
            held = path.stat().st_size - file.tell()
            _judge(shape, dtype, held, str(path))
            if held > bytes_claimed(shape, dtype):
                raise RecordRejected(
                    "bad-format", f"{path}: {held - bytes_claimed(shape, dtype)} bytes follow its array: a second one?"
                )
            file.seek(0)
            return ArrayFile(_checked(npy.read_array(file, allow_pickle=False), path))
    except FileNotFoundError:
        raise RecordRejected("missing-file", f"{path}: no such file") from None
    except UNREADABLE_ARRAY as error:
        raise RecordRejected("bad-format", f"{path}: {type(error).__name__}: {str(error)[:300]}") from None


def leads_first(
    array: ArrayFile, leads: Sequence[str], orientation: str, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The signal as (L, T) and its lead names. orientation: "leads-first", "samples-first", or "" to tell by which side
    has one entry per lead.

    A CSV whose first line names its columns needs neither. Raises RecordRejected("bad-format") when the shape fits no
    side or both.
    """
    if array.columns:
        return array.values.T, array.columns
    fits = [
        side
        for side, size in zip(("leads-first", "samples-first"), array.values.shape, strict=True)
        if size == len(leads)
    ]
    if (orientation and orientation not in fits) or not fits:
        raise RecordRejected(
            "bad-format", f"{where}: an array {array.values.shape} is not {orientation or 'one'} of {len(leads)} leads"
        )
    if not orientation and len(fits) > 1:
        raise RecordRejected(
            "bad-format", f"{where}: an array {array.values.shape} of {len(leads)} leads: set the option orientation"
        )
    return (array.values if (orientation or fits[0]) == "leads-first" else array.values.T), tuple(leads)


def _read_npz(path: Path, member: str) -> ArrayFile:
    with zipfile.ZipFile(path) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        heads = {name: _head_of(archive, info) for name, info in held.items()}
        flat = [name for name, head in heads.items() if head is not None and len(head[0]) == 2]
        names = ", ".join(list(held)[:40]) or "nothing"
        if not member and len(flat) != 1:
            raise RecordRejected("bad-format", f"{path} holds {names}: name the array of the signal (option member)")
        chosen = member or flat[0]
        if chosen not in held:
            raise RecordRejected("bad-format", f"{path} has no array {chosen!r}; it holds {names}")
        head = heads[chosen]
        if head is None:
            raise RecordRejected("bad-format", f"{path}: {chosen!r} is no array of numbers")
        _judge(head[0], head[1], held[chosen].file_size, f"{path}: {chosen!r}")
        values = _array_of(archive, held[chosen])
        others: dict[str, np.ndarray] = {}
        for name, head in heads.items():
            if head is not None and name != chosen and bytes_claimed(*head) <= LARGEST_FACT and _is_fact(head[1]):
                with suppress(*UNREADABLE_ARRAY):  # an array that nobody asked for may be damaged
                    others[name] = _array_of(archive, held[name])
        unread = {name: head for name, head in heads.items() if name != chosen and name not in others}
        others = with_inner_facts(others, str(path))
    _refuse_unread_facts(unread, values.shape, path)
    return ArrayFile(_checked(values, path), others=others)


def _refuse_unread_facts(
    unread: Mapping[str, tuple[tuple[int, ...], np.dtype] | None], signal: tuple[int, ...], path: Path
) -> None:
    """Raises RecordRejected where an array that was not read says by its name, or as one object for each lead, what the
    signal is: passed over, the signal would be taken for something else."""
    for name, head in unread.items():
        objects = head is not None and head[1].hasobject
        if letters(name) in _FACTS or (objects and head is not None and head[0] in {(size,) for size in signal}):
            why = "holds objects, which may be code" if objects else "cannot be read"
            raise RecordRejected(
                "bad-format",
                f"{path}: {name!r} says something about the signal and {why}; save it as plain words or numbers "
                f"({name}=numpy.array({name}, dtype=str)), or leave it out",
            )


def _head_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of one array of an archive, None for what is none."""
    try:
        with archive.open(info) as file:
            shape, _, dtype = array_header(file)
            return shape, dtype
    except UNREADABLE_ARRAY:
        return None


def _is_fact(dtype: np.dtype) -> bool:
    return dtype.kind in "iufUS" or (dtype.names is not None and not dtype.hasobject)


def _array_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def _judge(shape: Sequence[int], dtype: np.dtype, held: int, where: str) -> None:
    """Raises RecordRejected for an array that is too large, or larger than what is there."""
    if dtype.hasobject:
        raise RecordRejected("bad-format", f"{where}: an array of objects, which may hold code")
    size = bytes_claimed(shape, dtype)
    if size > LARGEST or size > held or min(shape, default=0) < 0:
        limit = f"a signal has at most {LARGEST} bytes" if size > LARGEST else f"there are {held} bytes"
        sides = tuple(shape) if max(map(abs, shape)) < 1 << 62 else "of an impossible shape"
        raise RecordRejected("bad-format", f"{where}: it claims an array of {dtype} {sides}, {limit}")


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise RecordRejected(
            "bad-format", f"{path}: an array of {array.dtype} {array.shape}, expected numbers (leads, samples)"
        )
    return array


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
