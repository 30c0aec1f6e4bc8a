"""Arrays in physical units -> integer counts at a stated gain, as records of data sets that publish no counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.header import GAIN_RANGE
from cardialign.data_shards.reading.wfdb.reader import WfdbSignal
from cardialign.data_shards.signal.sixteen_bits import coarse, counts_per_step, in_steps

COUNTS_PER_MILLIVOLT = 1000.0
"""Steps of 1 uV, finer than any ECG amplifier's noise, and +-32 mV within 16 bits."""


def signal_from_millivolts(
    millivolts: np.ndarray,
    lead_names: Sequence[str],
    sampling_rate: float,
    where: str,
    gain: float | np.ndarray = COUNTS_PER_MILLIVOLT,
) -> WfdbSignal:
    """float (L, T) in mV -> the nearest counts at `gain` counts per mV, one for all leads or (L,).

    A lead whose peaks would not fit into 16 bits gets a lower gain (flag "coarse" where its steps leave 2 uV); samples
    that are no number become 0 and are flagged. `where` names the record in errors.

    Raises RecordRejected: bad-format (not numbers, not one row per lead), no-signal, bad-gain.
    """
    if millivolts.ndim != 2 or not np.issubdtype(millivolts.dtype, np.number) or np.iscomplexobj(millivolts):
        raise RecordRejected(
            "bad-format",
            f"{where}: an array of {millivolts.dtype} {millivolts.shape}, expected numbers (leads, samples)",
        )
    if len(millivolts) != len(lead_names):
        raise RecordRejected(
            "bad-format", f"{where}: {len(millivolts)} rows for {len(lead_names)} leads; is it (samples, leads)?"
        )
    if millivolts.shape[1] == 0:
        raise RecordRejected("no-signal", f"{where}: the record holds no sample")
    invalid = ~np.isfinite(millivolts)
    values = np.where(invalid, 0.0, millivolts).astype(np.float64)
    gains = np.broadcast_to(np.asarray(gain, dtype=np.float64), (len(values),))
    wide = values * gains[:, np.newaxis]
    scale = counts_per_step(wide, gains)
    if (gains / scale).min() < GAIN_RANGE[0]:
        raise RecordRejected(
            "bad-gain", f"{where}: values up to {np.abs(values).max():.3g} mV are no voltages of a heart"
        )
    if 0 < float(np.ptp(wide, axis=1).max()) <= 1:
        raise RecordRejected(
            "bad-gain",
            f"{where}: values span {np.ptp(values, axis=1).max():.3g} mV, less than one of {gains.max():g} counts per "
            "mV; is the unit mV?",
        )
    counts = in_steps(wide, scale)
    concerned = {
        "non-finite": tuple(np.flatnonzero(invalid.any(axis=1)).tolist()),
        "coarse": coarse(scale, gains),
    }
    flags = {flag: leads for flag, leads in concerned.items() if leads}
    return WfdbSignal(
        counts, gains / scale, np.zeros(len(counts), dtype=np.int64), tuple(lead_names), sampling_rate, (), flags
    )
