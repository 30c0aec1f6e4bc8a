"""Signal quality flags, cheap enough to run on every record of a build (well under 0.5 ms for 12 x 5000).

About 6.7 % of MIMIC-IV-ECG records have a flat, dropped-out or clipped lead. Flags remark, they never repair: a gain
that looks wrong stays as the file gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.signal.limb_leads import LIMB_LEADS, exchanged

FLAGS: tuple[str, ...] = (
    "non-finite",
    "flat",
    "clipped",
    "dropout",
    "gain-suspect",
    "missing-lead",
    "checksum",
    "surplus",
    "coarse",
    "offset",
    "limb-leads",
)
"""Position = bit in the index's `quality` column; append only.

non-finite    samples without a value in the file, stored as 0
flat          the whole lead within one count: masked
clipped       plateaus at the lead's highest or lowest value
dropout       0.4 s or more at one exact value within a living lead
gain-suspect  amplitudes outside 0.05 .. 20 mV: the header's gain is probably wrong
missing-lead  not in the file: masked
checksum      not the sum, or the first value, that the file's header gives: the signal file was damaged, or the header
              is another record's
surplus       the signal file holds more than its header announces and no checksum says why: only what is announced was
              read
coarse        values so far from 0 that 16 bits hold them in steps of more than 2 uV
offset        the median of the lead lies more than 0.7 mV from 0: its ADC zero or baseline was not subtracted, or the
              recorder kept the voltage of the electrodes (DC)
limb-leads    I, II, III, aVR, aVL and aVF contradict Einthoven's law as they are named, and fit it with two of them
              exchanged, or one upside down: these (`limb_leads`)

An encoder that reads mV as recorded (normalisation none) reads an offset, too, below what the flag can tell from a lead
whose median is its own. On 102 real records of PTB-XL fold 9 and `cardialign-ptb-xl` trained on folds 1 to 8: 0.1 mV on
all leads leaves a median cosine between the embeddings of 0.958 (least 0.878) and a zero-shot AUROC of 0.869 as it was;
0.5 mV 0.668 (0.179) and 0.849; 0.5 mV of random sign on each lead 0.731 (0.286) and 0.819. Of the
normalisations centred and lead-std take it off each lead, minmax and zscore take off what all leads share.
"""

DROPOUT_SECONDS = 0.4
PLATEAU_SECONDS = 0.008
CLIPPED_SECONDS = 0.02
SEPARATE_SECONDS = 0.1
LONG_PLATEAU_SECONDS = 0.2
MILLIVOLT_RANGE = (0.05, 20.0)
OFFSET_MILLIVOLTS = 0.7
"""None of 1,543 real records of PTB-XL, CPSC2018, CSN and ZZU-pECG has a lead whose median lies farther from 0 (the
farthest: 0.645 mV); 21 of 60 of CODE-15% have one, up to 7.1 mV. Lower, the flag would be on healthy records."""
_WINDOW_SECONDS = 2.0  # long enough to hold a beat at 30 beats/min, short enough that one spike does not decide
_FOR_MIDDLE = 500  # samples of a lead are enough to tell its median
_LEAST_SPAN = 32  # counts: below this, repeated extremes are quantisation, not clipping


def assess(
    counts: np.ndarray, gain: np.ndarray, lead_mask: np.ndarray, sampling_rate: float = 500.0
) -> dict[str, tuple[str, ...]]:
    """counts int16 (12, T), gain (12,) counts per mV, lead_mask bool (12,), sampling_rate in Hz -> flag name -> lead
    names.

    Finds all flags but "non-finite", "checksum", "surplus" and "coarse", which only the file can tell. Flags without a
    lead are left out.
    """
    lead_mask = np.asarray(lead_mask, dtype=bool)
    flags: dict[str, np.ndarray] = {"missing-lead": ~lead_mask}
    if counts.shape[1] and lead_mask.any():
        high, low = _window_extremes(counts, max(1, round(_WINDOW_SECONDS * sampling_rate)))
        top, bottom = high.max(axis=1), low.min(axis=1)
        span = top.astype(np.int32) - bottom
        flags["flat"] = lead_mask & (span <= 1)
        living = lead_mask & (span > 1)
        flags["dropout"] = living & _has_constant_run(counts, max(2, round(DROPOUT_SECONDS * sampling_rate)))
        flags["clipped"] = living & (span >= _LEAST_SPAN) & _is_clipped(counts, top, bottom, sampling_rate)
        flags["gain-suspect"] = living & _has_suspect_gain(high, low, gain, living)
        middle = np.median(counts[:, :: max(1, counts.shape[1] // _FOR_MIDDLE)], axis=1)
        far = np.abs(middle) > OFFSET_MILLIVOLTS * gain
        flags["offset"] = living & far & ~flags["gain-suspect"]
        limb = len(LIMB_LEADS)
        if living[:limb].all() and (slip := exchanged(counts[:limb], np.asarray(gain)[:limb, None])):
            flags["limb-leads"] = np.isin(STANDARD_LEADS, slip.leads)
    return _named(flags)


def usable(lead_mask: np.ndarray, flags: Mapping[str, Iterable[str]]) -> np.ndarray:
    """The lead mask without the leads that are flat throughout; bool (12,), a copy."""
    mask = np.array(lead_mask, dtype=bool)
    mask[[STANDARD_LEADS.index(lead) for lead in flags.get("flat", ())]] = False
    return mask


def merge(*parts: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Union of flags, in the order of FLAGS, leads in standard order."""
    together: dict[str, set[str]] = {}
    for part in parts:
        for flag, leads in part.items():
            together.setdefault(flag, set()).update(leads)
    return {
        flag: tuple(lead for lead in STANDARD_LEADS if lead in together[flag]) for flag in FLAGS if together.get(flag)
    }


def bits(flags: Iterable[str]) -> int:
    """Flag names (or a mapping by flag name) -> bit set for the index. Raises KeyError for a name that is no flag."""
    position = {flag: i for i, flag in enumerate(FLAGS)}
    return sum({1 << position[flag] for flag in flags})


def names(bit_set: int) -> tuple[str, ...]:
    """The reverse of `bits`."""
    return tuple(flag for i, flag in enumerate(FLAGS) if bit_set >> i & 1)


def _named(flags: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    return {
        flag: tuple(STANDARD_LEADS[i] for i in np.flatnonzero(flags[flag]))
        for flag in FLAGS
        if flag in flags and flags[flag].any()
    }


def _window_extremes(counts: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest and lowest count per lead and window, (12, W) each; a rest shorter than a window joins the last one."""
    starts = np.arange(0, max(counts.shape[1] - window, 0) + 1, window)
    return np.maximum.reduceat(counts, starts, axis=1), np.minimum.reduceat(counts, starts, axis=1)


def _has_constant_run(counts: np.ndarray, run: int) -> np.ndarray:
    """bool (12,): `run` consecutive equal samples somewhere."""
    same = counts[:, 1:] == counts[:, :-1]
    # A run of run - 1 equal neighbours covers at least one aligned block of half its length: most leads are cleared by
    # that test alone.
    half = max(1, (run - 1) // 2)
    blocks = same.shape[1] // half
    candidates = same[:, : blocks * half].reshape(len(same), blocks, half).all(axis=2).any(axis=1)
    found = np.zeros(len(same), dtype=bool)
    for row in np.flatnonzero(candidates):
        breaks = np.flatnonzero(~same[row])
        edges = np.concatenate(([-1], breaks, [same.shape[1]]))
        found[row] = np.diff(edges).max() - 1 >= run - 1
    return found


def _is_clipped(counts: np.ndarray, top: np.ndarray, bottom: np.ndarray, sampling_rate: float) -> np.ndarray:
    """bool (12,): at one extreme of the lead, plateaus in two separate places, or one that lasts longer than any wave
    peaks.

    A single short plateau is quantisation at a rounded peak: 22 of 458 real PTB-XL records (5 uV steps) have one, none
    of them clipped.
    """
    plateau = max(3, round(PLATEAU_SECONDS * sampling_rate))
    least = max(2 * plateau, round(CLIPPED_SECONDS * sampling_rate))
    apart, long = round(SEPARATE_SECONDS * sampling_rate), max(least, round(LONG_PLATEAU_SECONDS * sampling_rate))
    clipped = np.zeros(len(counts), dtype=bool)
    for extreme in (top, bottom):
        at_extreme = counts == extreme[:, None]
        for row in np.flatnonzero(at_extreme.sum(axis=1) >= least):
            edges = np.flatnonzero(np.diff(at_extreme[row], prepend=False, append=False))
            starts, lengths = edges[::2], edges[1::2] - edges[::2]
            starts, lengths = starts[lengths >= plateau], lengths[lengths >= plateau]
            repeated = len(starts) > 1 and starts[-1] - starts[0] > apart and lengths.sum() >= least
            clipped[row] |= bool(repeated or (lengths >= long).any())
    return clipped


def _has_suspect_gain(high: np.ndarray, low: np.ndarray, gain: np.ndarray, living: np.ndarray) -> np.ndarray:
    """bool (12,): all leads when the record's median amplitude is out of range, else single leads whose own gain is."""
    amplitude = np.median(high.astype(np.float32) - low, axis=1) / gain
    least, most = MILLIVOLT_RANGE
    typical = float(np.median(amplitude[living])) if living.any() else 0.0
    if living.any() and not least <= typical <= most:
        return living
    # a quiet lead is no wrong gain: hundredfold smaller than the others although it has many counts, or hundredfold
    # larger
    digits = amplitude * gain
    return living & (
        ((amplitude < typical / 100) & (digits >= 2 * _LEAST_SPAN)) | (amplitude > max(typical * 100, most))
    )
