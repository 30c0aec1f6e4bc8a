"""A lenient parser of WFDB header files (.hea), https://physionet.org/physiotools/wag/header-5.htm.

Lenient where real data sets are: dates such as 05-May-2020, `1000/mV`, `200.0(0)/mV`, missing gain, missing trailing
fields, comments in any encoding. Strict where a guess would change the signal: gains, byte layout, sample counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cardialign.data_shards.errors import RecordRejected

DEFAULT_GAIN = 200.0
"""Counts per unit where a header gives none (WFDB's own default)."""
GAIN_RANGE = (1e-6, 1e12)
"""Counts per mV that are gains at all; what lies outside is damage, and would not survive 32-bit floats."""
DEFAULT_SAMPLING_RATE = 250.0
"""Hz where a header gives none (WFDB's own default)."""
RATE_RANGE = (10.0, 100_000.0)
"""Hz in which ECGs are recorded; what lies outside is damage, or no ECG."""
MILLIVOLTS_PER_UNIT = {
    "mv": 1.0,
    "": 1.0,
    "uv": 1e-3,
    "µv": 1e-3,
    "μv": 1e-3,
    "nv": 1e-6,
    "v": 1e3,
}  # both code points of the micro sign

_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([^(/]*)(?:\(([^)]*)\))?(?:/(.*))?")


@dataclass(frozen=True, slots=True)
class SignalLine:
    """One signal of a header: how it is stored, and gain (counts per `units`, DEFAULT_GAIN when absent) and baseline
    (count at 0)."""

    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    baseline: int
    units: str
    name: str

    def counts_per_millivolt(self, where: str) -> float:
        """Gain in counts per mV. Raises RecordRejected("bad-gain") unless finite, positive, and of a voltage."""
        scale = MILLIVOLTS_PER_UNIT.get(self.units.casefold())
        if scale is None:
            raise RecordRejected(
                "bad-gain", f"{where}: lead {self.name!r} has the unit {self.units!r}, expected mV, uV or V"
            )
        gain = self.gain / scale
        if not GAIN_RANGE[0] <= gain <= GAIN_RANGE[1]:  # false for NaN too
            raise RecordRejected(
                "bad-gain",
                f"{where}: lead {self.name!r} has the gain {self.gain}, expected a positive number of counts per "
                f"{self.units or 'mV'}",
            )
        return gain


@dataclass(frozen=True, slots=True)
class WfdbHeader:
    """A parsed header. samples is None when the header does not say; files holds the file name of each signal; segments
    > 0 means a multi-segment record (no signal lines read). checksums: of each signal, modulo 2^16; () when the header
    gives none."""

    signal_count: int
    sampling_rate: float
    samples: int | None
    signals: tuple[SignalLine, ...]
    files: tuple[str, ...]
    comments: tuple[str, ...]
    segments: int = 0
    checksums: tuple[int, ...] = ()


def read_header(path: Path) -> WfdbHeader:
    """Parse the header file at `path`. Raises RecordRejected: missing-file, unreadable-header."""
    try:
        text = header_text(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RecordRejected("missing-file", f"{path}: no such header file") from None
    except OSError as error:
        raise RecordRejected("unreadable-header", f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise RecordRejected("missing-file", f"{str(path)!r} is no path: {error}") from None
    try:
        return parse_header(text)
    except ValueError as error:
        raise RecordRejected("unreadable-header", f"{path}: {error}") from None


def header_text(raw: bytes) -> str:
    """UTF-8, or Latin-1 where it is none: comments in German or Spanish, and units of \xb5V."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def parse_header(text: str) -> WfdbHeader:
    """Parse the text of a header. Raises ValueError that says which line and what was expected."""
    lines: list[str] = []
    comments: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise ValueError("the header is empty, expected a record line '<name> <signals> <Hz> <samples>'")
    signal_count, segments, sampling_rate, samples = _record_line(lines[0])
    described: list[tuple[str, SignalLine]] = []
    checksums: list[int] = []
    if not segments:
        if len(lines) - 1 < signal_count:
            raise ValueError(f"the record line announces {signal_count} signals, the header describes {len(lines) - 1}")
        fields = [line.split(None, 8) for line in lines[1 : 1 + signal_count]]
        described = [_signal_line(words) for words in fields]
        checksums = [int(words[6]) & 0xFFFF for words in fields if len(words) > 6 and words[6].lstrip("-").isdigit()]
    files = tuple([file for file, _ in described])
    given = tuple(checksums) if any(checksums) and len(checksums) == signal_count else ()
    return WfdbHeader(
        signal_count,
        sampling_rate,
        samples,
        tuple([line for _, line in described]),
        files,
        tuple(comments),
        segments,
        given,
    )


def _record_line(line: str) -> tuple[int, int, float, int | None]:
    """-> signals, segments, Hz, samples. What follows (time and date) is not needed and comes in too many spellings."""
    words = line.split()
    try:
        segments = int(words[0].partition("/")[2] or 0)
        signal_count = int(words[1])
        rate = re.split(r"[/(]", words[2])[0] if len(words) > 2 else ""
        sampling_rate = float(rate) if rate else DEFAULT_SAMPLING_RATE
        # "0 samples" is WFDB's way of saying "unknown"
        samples = (int(words[3]) or None) if len(words) > 3 and words[3].isdigit() else None
    except (ValueError, IndexError):
        raise ValueError(f"invalid record line {line[:120]!r}, expected '<name> <signals> <Hz> <samples>'") from None
    if signal_count < 0 or not RATE_RANGE[0] <= sampling_rate <= RATE_RANGE[1]:  # false for NaN too
        raise ValueError(f"invalid record line {line[:120]!r}: {signal_count} signals at {sampling_rate} Hz")
    return signal_count, segments, sampling_rate, samples


def _signal_line(words: list[str]) -> tuple[str, SignalLine]:
    if len(words) < 2:
        raise ValueError(
            f"invalid signal line {' '.join(words)[:120]!r}, expected '<file> <format> <gain>/<unit> ... <lead>'"
        )
    words = words + [""] * (9 - len(words))
    return words[0], _signal(words[1], words[2], words[4], words[8].strip())


@lru_cache(maxsize=4096)
def _signal(storage: str, gain_word: str, adc_zero: str, name: str) -> SignalLine:
    """Cached: within a data set these four words repeat from record to record, and parsing them is most of the work."""
    gain, baseline, units = _gain(gain_word)
    if baseline is None:
        baseline = _integer(adc_zero) if adc_zero else 0  # the ADC zero stands in for an absent baseline
    return SignalLine(*_storage(storage), gain, baseline, units, name)


def _storage(word: str) -> tuple[int, int, int, int]:
    """`16x2:3+24` -> format, samples per frame, skew, byte offset."""
    match = _FORMAT.fullmatch(word)
    if match is None:
        raise ValueError(f"invalid storage format {word!r}")
    number, frame, skew, offset = match.groups()
    return int(number), int(frame or 1), int(skew or 0), int(offset or 0)


def _gain(word: str) -> tuple[float, int | None, str]:
    """`200.0(0)/mV` -> gain, baseline, unit."""
    match = _GAIN.fullmatch(word)
    if match is None:
        raise ValueError(f"invalid gain {word!r}, expected something like '200(0)/mV'")
    gain, baseline, units = match.groups()
    try:
        return float(gain) if gain else DEFAULT_GAIN, _integer(baseline) if baseline else None, (units or "").strip()
    except ValueError:
        raise ValueError(f"invalid gain {word!r}, expected something like '200(0)/mV'") from None


def _integer(word: str) -> int:
    try:
        number = int(word)
    except ValueError:
        raise ValueError(f"invalid number of counts {word!r}, expected an integer") from None
    if abs(number) > 1 << 32:
        raise ValueError(f"{number} counts are more than any WFDB format holds")
    return number
