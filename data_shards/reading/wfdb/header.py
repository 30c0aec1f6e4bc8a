"""A lenient parser of WFDB header files (.hea), https://physionet.org/physiotools/wag/header-5.htm.

Lenient where real data sets are: dates such as 05-May-2020, `1000/mV`, `200.0(0)/mV`, missing gain, missing trailing
fields, a folder in the record name, comments in any encoding. Strict where a guess would change the signal: gains, byte
layout, sample counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.units import millivolts_of
from cardialign.data_shards.reading.wfdb.files import header_bytes
from cardialign.data_shards.reading.wfdb.leads import may_be_lead, name_and_unit

DEFAULT_GAIN = 200.0
"""Counts per unit where a header gives none (WFDB's own default)."""
GAIN_RANGE = (1e-6, 1e12)
"""Counts per mV that are gains at all; what lies outside is damage, and would not survive 32-bit floats."""
DEFAULT_SAMPLING_RATE = 250.0
"""Hz where a header gives none (WFDB's own default)."""
RATE_RANGE = (10.0, 100_000.0)
"""Hz in which ECGs are recorded; what lies outside is damage, or no ECG."""
MOST_SIGNALS = 4096
MOST_DIGITS = 15
"""Of a count in a header: more samples, or bytes, than any disk holds."""

_FORMAT = re.compile(r"([0-9]+)(?:x([0-9]+))?(?::([0-9]+))?(?:\+([0-9]+))?")
_GAIN = re.compile(r"([^(/]*)(?:\(([^)]*)\))?(?:/(.*))?")
_COUNT = re.compile(r"([0-9]+)(?:\.0*)?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_MARK = re.compile(r"[\W_]")
_SUFFIX = re.compile("_(?:hea|dat|mat|edf)$")


@dataclass(frozen=True, slots=True)
class SignalLine:
    """One signal of a header: how it is stored, and gain (counts per `units`, DEFAULT_GAIN when absent) and baseline
    (count at 0, the ADC zero when absent)."""

    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    baseline: int
    units: str
    adc_zero: int
    name: str

    def counts_per_millivolt(self, where: str) -> float:
        """Gain in counts per mV; of a channel that is no standard lead (a pressure, say) per unit of its own, 1 where
        it says none. Raises RecordRejected("bad-gain") unless a lead's gain is finite, positive, and of a voltage."""
        scale = millivolts_of(self.units) if self.units else 1.0
        if not may_be_lead(self.name) and (scale is None or not GAIN_RANGE[0] <= self.gain / scale <= GAIN_RANGE[1]):
            return self.gain if GAIN_RANGE[0] <= self.gain <= GAIN_RANGE[1] else 1.0
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
    """A parsed header.

    frame_rate: frames per second, which are samples where a lead has one sample per frame. samples: frames, None when
    the header does not say. files: the file name of each signal. segments: (name, frames) of each segment of a
    multi-segment record, which has no signal lines. checksums (modulo 2^16) of each signal, None where it has none; ()
    when the header gives none. initials: first sample of each signal, None where it has none; told: whether they are
    more than what writers put down who do not know them.
    """

    signal_count: int
    frame_rate: float
    samples: int | None
    signals: tuple[SignalLine, ...]
    files: tuple[str, ...]
    comments: tuple[str, ...]
    segments: tuple[tuple[str, int], ...] = ()
    checksums: tuple[int | None, ...] = ()
    initials: tuple[int | None, ...] = ()
    told: bool = False


def read_header(path: Path) -> WfdbHeader:
    """Parse the header file at `path`. Raises RecordRejected: missing-file, unreadable-header."""
    try:
        text = header_text(header_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordRejected("missing-file", f"{path}: no such header file") from None
    except OSError as error:
        raise RecordRejected("unreadable-header", f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise RecordRejected("missing-file", f"{str(path)!r} is no path: {error}") from None
    try:
        return parse_header(text, path.name.removesuffix(".hea"))
    except ValueError as error:
        raise RecordRejected("unreadable-header", f"{path}: {error}") from None


def header_text(raw: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, or else the code page of Windows: comments in German or Spanish, and \xb5V."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def header_lines(text: str) -> list[str]:
    """The lines of a header, stripped: they end at LF or CR LF (at CR in files without LF), and at nothing else that
    Unicode calls a line break."""
    return [line.strip() for line in text.split("\n" if "\n" in text else "\r")]


def parse_header(text: str, name: str = "") -> WfdbHeader:
    """Parse the text of a header. name: of its file, without suffix, which its record line must name.

    Raises ValueError that says which line and what was expected.
    """
    lines: list[str] = []
    comments: list[str] = []
    for line in header_lines(text):
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise ValueError("the header is empty, expected a record line '<name> <signals> <Hz> <samples>'")
    signal_count, frame_rate, samples = _record_line(lines[0])
    word = lines[0].split()[0]
    segments = _segments(word, lines[1:], signal_count, name)
    _check_name(word.rpartition("/")[0] if segments else word, name)
    if segments:
        return WfdbHeader(signal_count, frame_rate, samples, (), (), tuple(comments), segments)
    if len(lines) - 1 < signal_count:
        raise ValueError(f"the record line announces {signal_count} signals, the header describes {len(lines) - 1}")
    fields = [line.split(None, 8) for line in lines[1 : 1 + signal_count]]
    if lines[1 + signal_count :]:
        _check_no_signal(lines[1 + signal_count].split(), fields)
    signals = tuple([_signal_line(words) for words in fields])
    highest = frame_rate * max([signal.samples_per_frame for signal in signals], default=1)
    if not RATE_RANGE[0] <= highest <= RATE_RANGE[1]:
        raise ValueError(f"invalid record line {lines[0][:120]!r}: {signal_count} signals at {highest:g} Hz")
    checksums = tuple([None if sum_ is None else sum_ & 0xFFFF for sum_ in _column(fields, 6)])
    initials = tuple(_column(fields, 5))
    told = any(value not in (None, 0, line.adc_zero) for value, line in zip(initials, signals, strict=True))
    return WfdbHeader(
        signal_count,
        frame_rate,
        samples,
        signals,
        tuple([words[0] for words in fields]),
        tuple(comments),
        (),
        checksums if any(checksums) else (),  # zero in every lead is how a header says nothing
        initials,
        told,
    )


def _check_name(word: str, file: str) -> None:
    """Raises ValueError when the record line names another record than the file: somebody renamed or copied one of the
    two, and whose recording it is cannot be told. WFDB's own library refuses it; a folder, a suffix (`E00001.mat` in
    the Challenges), capitals and marks make no other record."""
    named, called = (_MARK.sub("_", unicodedata.normalize("NFC", each).casefold()) for each in (_last(word), file))
    if file and called not in (named, _SUFFIX.sub("", named)):
        raise ValueError(
            f"the record line is that of {word[:80]!r}, the file that of {file[:80]!r}: rename the one that is wrong"
        )


def _last(word: str) -> str:
    return re.split(r"[/\\]", word)[-1]


def _check_no_signal(words: Sequence[str], fields: Sequence[Sequence[str]]) -> None:
    """Raises ValueError when the line after the last signal describes one more in the same file: all would be
    scrambled. Any other line is somebody's remark."""
    if len(words) > 1 and words[0] in {known[0] for known in fields} and _FORMAT.fullmatch(words[1]):
        raise ValueError(f"the record line announces {len(fields)} signals, the header describes more")


def _column(fields: Sequence[Sequence[str]], place: int) -> list[int | None]:
    return [
        int(words[place]) if len(words) > place and len(words[place]) < 20 and _WHOLE.fullmatch(words[place]) else None
        for words in fields
    ]


def _record_line(line: str) -> tuple[int, float, int | None]:
    """-> signals, Hz, samples. What follows (time and date) is not needed and comes in too many spellings."""
    words = line.split()
    try:
        signal_count = _count(words[1])
        rate = re.split(r"[/(]", words[2])[0] if len(words) > 2 else ""
        frame_rate = _float(rate) if rate else DEFAULT_SAMPLING_RATE
        # "0 samples" is WFDB's way of saying "unknown"
        samples = (_count(words[3]) or None) if len(words) > 3 and _COUNT.fullmatch(words[3]) else None
    except IndexError:
        raise ValueError(f"invalid record line {line[:120]!r}, expected '<name> <signals> <Hz> <samples>'") from None
    except ValueError as error:
        raise ValueError(
            f"invalid record line {line[:120]!r}, expected '<name> <signals> <Hz> <samples>': {error}"
        ) from None
    if signal_count > MOST_SIGNALS or not 0 < frame_rate <= RATE_RANGE[1]:  # false for NaN too
        raise ValueError(f"invalid record line {line[:120]!r}: {signal_count} signals at {frame_rate} Hz")
    return signal_count, frame_rate, samples


def _segments(word: str, lines: Sequence[str], signal_count: int, file: str) -> tuple[tuple[str, int], ...]:
    """Names and lengths of the segments of a record line `name/3 ...`; () where the slash parts a folder from the name
    (`records/17`), as the lines that follow tell. Raises ValueError for fewer segments than announced."""
    _, slash, number = word.rpartition("/")
    if not slash or not re.fullmatch("[0-9]+", number):
        return ()
    words = [line.split() for line in lines]
    listed = all(len(pair) == 2 and _COUNT.fullmatch(pair[1]) for pair in words)
    if not listed or (number == file and str(len(words)) != number and len(words) == signal_count):
        return ()
    if _count(number) != len(words) or not words:
        raise ValueError(f"the record line announces {number[:20]} segments, the header lists {len(words)}")
    return tuple([(name, _count(length)) for name, length in words])


def _signal_line(words: list[str]) -> SignalLine:
    if len(words) < 2:
        raise ValueError(
            f"invalid signal line {' '.join(words)[:120]!r}, expected '<file> <format> <gain>/<unit> ... <lead>'"
        )
    words = words + [""] * (9 - len(words))
    return _signal(words[1], words[2], words[4], words[8].strip())


@lru_cache(maxsize=4096)
def _signal(storage: str, gain_word: str, adc_zero: str, name: str) -> SignalLine:
    """Cached: within a data set these four words repeat from record to record, and parsing them is most of the work."""
    gain, baseline, units = _gain(gain_word)
    lead, unit = name_and_unit(name)
    if unit and millivolts_of(unit) != millivolts_of(units or "mV"):
        raise ValueError(f"the lead {name[:40]!r} has the unit {unit} in its name, and {units or 'mV'} behind its gain")
    zero = _integer(adc_zero) if adc_zero else 0
    return SignalLine(*_storage(storage), gain, zero if baseline is None else baseline, units, zero, lead)


def _storage(word: str) -> tuple[int, int, int, int]:
    """`16x2:3+24` -> format, samples per frame, skew, byte offset."""
    match = _FORMAT.fullmatch(word)
    if match is None:
        raise ValueError(f"invalid storage format {word[:40]!r}")
    number, frame, skew, offset = match.groups()
    return _count(number), _count(frame or "1") or 1, _count(skew or "0"), _count(offset or "0")


def _gain(word: str) -> tuple[float, int | None, str]:
    """`200.0(0)/mV` -> gain, baseline, unit."""
    match = _GAIN.fullmatch(word)
    if match is None:
        raise ValueError(f"invalid gain {word[:40]!r}, expected something like '200(0)/mV'")
    gain, baseline, units = match.groups()
    try:
        return _float(gain) if gain else DEFAULT_GAIN, _integer(baseline) if baseline else None, (units or "").strip()
    except ValueError:
        raise ValueError(f"invalid gain {word[:40]!r}, expected something like '200(0)/mV'") from None


def _count(word: str) -> int:
    """A number of things. Raises ValueError, also for more digits than Python cares to print."""
    match = _COUNT.fullmatch(word)
    if match is None:
        raise ValueError(f"{word[:40]!r} is no number of anything")
    if len(match[1].lstrip("0")) > MOST_DIGITS:
        raise ValueError(f"a number of {len(match[1])} digits is more than any file holds")
    return int(match[1])


def _float(word: str) -> float:
    if "_" in word:  # 1_000 is a number to Python alone
        raise ValueError(f"{word[:40]!r} is no number")
    return float(word)


def _integer(word: str) -> int:
    """A number of counts, also as `512.0`."""
    whole = word.partition(".")
    if not _WHOLE.fullmatch(whole[0]) or whole[2].strip("0"):
        raise ValueError(f"invalid number of counts {word[:40]!r}, expected an integer")
    if len(whole[0]) > MOST_DIGITS or abs(int(whole[0])) > 1 << 32:
        raise ValueError(f"{whole[0][:40]} counts are more than any WFDB format holds")
    return int(whole[0])
