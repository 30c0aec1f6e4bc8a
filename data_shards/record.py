"""`EcgRecord`, the one noun of the data floor, and the facts that every other module takes from here: lead order and
signal spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STANDARD_LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""Lead order of every array in this project.

Sources reorder by name, case-insensitively (MIMIC-IV-ECG stores aVF before aVL).
"""


@dataclass(frozen=True)
class SignalSpec:
    """What every record of one shard set is conformed to.

    sampling_rate in Hz, seconds per record; `samples` = T. Shorter records are zero-padded at the end
    (`EcgRecord.valid_samples` says how far the signal goes), longer ones keep their first `seconds`.
    """

    sampling_rate: float = 500.0
    seconds: float = 10.0

    @property
    def samples(self) -> int:
        return round(self.sampling_rate * self.seconds)


@dataclass
class EcgRecord:
    """One ECG with its report, as a source yields it and as a shard stores it.

    counts         int16 (12, T) in STANDARD_LEADS order; a lead that the file lacks is all zero and False in
                   `lead_mask`.
    gain           float32 (12,), counts per mV; mV = counts / gain.
    sampling_rate  Hz.
    lead_mask      bool (12,), False = missing or unusable (not recorded, non-finite throughout): to be masked by a
                   model, never read as 0 mV.
    valid_samples  samples that hold signal; the rest is padding. Equals T as read.
    statements     report statements in their order, cleaned but not joined.
    labels         label set name -> codes, e.g. {"super": ("NORM",), "scp": ("NORM", "SR")}. A set that is absent means
                   "not labelled".
    patient        opaque patient id (hashed by the source with the build's salt).
    fold           patient-level fold: the published one where the data set has folds, otherwise 1..10 by patient hash.
    age_years      years as a float (days matter in newborns), None when unknown. sex "female", "male" or None.
    acquired       ISO date and time, None when unknown.
    quality        flag name -> lead names concerned (`cardialign.data_shards.signal.quality`); empty = nothing to
                   remark.
    extra          anything else worth keeping in the shard's metadata (JSON-able), e.g. original rate and length.
    """

    key: str
    counts: np.ndarray
    gain: np.ndarray
    sampling_rate: float
    statements: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patient: str = ""
    fold: int = 0
    age_years: float | None = None
    sex: str | None = None
    acquired: str | None = None
    lead_mask: np.ndarray = field(default_factory=lambda: np.ones(12, dtype=bool))
    valid_samples: int = -1
    quality: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.counts.dtype == np.int16 and self.counts.ndim == 2 and self.counts.shape[0] == 12, (
            f"counts must be int16 (12, T), got {self.counts.dtype} {self.counts.shape}"
        )
        assert self.gain.shape == (12,), f"gain must be (12,), got {self.gain.shape}"
        if self.valid_samples < 0:
            self.valid_samples = self.counts.shape[1]

    @property
    def samples(self) -> int:
        return int(self.counts.shape[1])

    def millivolts(self) -> np.ndarray:
        """float32 (12, T) in mV."""
        return self.counts.astype(np.float32) / self.gain.astype(np.float32)[:, None]
