"""One ECG by the names that a command line gives: a WFDB record, a .npy file, or a key of a shard set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.data_shards.errors import RecordRejected, UserError
from cardialign.data_shards.files import UNREADABLE_ARRAY
from cardialign.data_shards.record import STANDARD_LEADS

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Signal:
    """One ECG as given: mV (L, T), the names of its L leads, Hz, where it came from.

    lead_mask (L,); None: every lead counts. valid_samples: how many of the T are signal; None: all.
    """

    millivolts: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    origin: str
    lead_mask: np.ndarray | None = None
    valid_samples: int | None = None


def read_signal(
    path: Path | None,
    *,
    shards: Path | None = None,
    key: str | None = None,
    leads: str | None = None,
    sampling_rate: float | None = None,
) -> Signal:
    """A record of a shard set (`shards`, `key`), a .npy file in mV, or a WFDB record.

    Raises UserError naming the file and what is wrong.
    """
    if key is not None:
        assert shards is not None
        return _from_shards(shards, key)
    assert path is not None
    if not path.name:
        raise UserError(f"{path} is no ECG", "give a WFDB record or a .npy file")
    return _from_npy(path, leads, sampling_rate) if path.suffix == ".npy" else _from_wfdb(path)


def _from_shards(shards: Path, key: str) -> Signal:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    shard_set = ShardSet.open(shards)
    record = shard_set.read_record(int(shard_set.select(keys=[key]).rows[0]))
    return Signal(
        record.millivolts(), STANDARD_LEADS, record.sampling_rate, key, record.lead_mask, record.valid_samples
    )


def _from_npy(path: Path, leads: str | None, sampling_rate: float | None) -> Signal:
    import numpy as np

    if sampling_rate is None:
        raise UserError(f"{path} does not say its sampling rate", "give --sampling-rate")
    try:
        values = np.load(path, allow_pickle=False)
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as a .npy array: {error}",
            "save a float array (leads x samples) in mV with numpy.save",
        ) from None
    names = tuple(name.strip() for name in leads.split(",")) if leads else STANDARD_LEADS
    return Signal(values, names, sampling_rate, str(path))


def _from_wfdb(path: Path) -> Signal:
    from cardialign.data_shards.reading.wfdb.reader import read_wfdb

    record = path.with_suffix("") if path.suffix in (".hea", ".dat") else path
    try:
        signal = read_wfdb(record)
    except RecordRejected as rejected:
        raise UserError(
            f"{record} cannot be read: {rejected.detail}", "give a WFDB record (its .hea and .dat stand side by side)"
        ) from None
    millivolts = signal.counts / signal.gain[:, None]
    return Signal(millivolts.astype("float32"), tuple(signal.lead_names), float(signal.sampling_rate), str(record))
