"""The one place where a user's array is brought to an encoder's signal contract, or refused.

Wrong lead order, microvolts for millivolts or 250 Hz for 500 Hz give embeddings that look fine and mean nothing. So
nothing is guessed: what differs from the contract is an error that names the difference and the argument that allows
the conversion. Legend: B batch, L leads, T samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import needed_by
from cardialign.data_shards.reading.no_value import without_sentinels
from cardialign.data_shards.reading.wfdb.header import RATE_RANGE
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.signal.limb_leads import LIMB_LEADS, exchanged, other_order
from cardialign.data_shards.signal.quality import OFFSET_MILLIVOLTS
from cardialign.data_shards.signal.resample import is_same_rate, resampled
from cardialign.pretrain.export.ages import checked_ages
from cardialign.pretrain.export.contract import SignalContract

log = logging.getLogger(__name__)

PER_MILLIVOLT = {"mv": 1.0, "uv": 1000.0, "µv": 1000.0, "μv": 1000.0}
IMPLAUSIBLE_MV = 100.0
"""Peak to peak. Surface ECGs stay under 20 mV even with wander; 1 mV given as 1000 uV is far above."""
IMPLAUSIBLY_FLAT_MV = 0.02
"""A record whose largest lead spans less is no ECG in mV: the lowest voltages that are read as low reach 0.5 mV."""

CONVERSIONS = ("resample", "crop", "derive_limb_leads", "allow_missing_leads")
"""Arguments of `SignalForm` that allow a conversion; other ways in ask for one by its word."""


class ContractSignal(NamedTuple):
    """As the encoder wants it: signal float32 (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples int64 (B,)."""

    signal: np.ndarray
    lead_mask: np.ndarray
    valid_samples: np.ndarray
    age: np.ndarray | None = None


class SignalForm(TypedDict, total=False):
    """How a user's signal is written, and which conversions are allowed; each may be left out.

    leads                names of the signal's second axis, in any order and letter case; default: the standard twelve
    units                "mV" (default) or "uV"
    lead_mask            bool (L,) or (B, L) in the order of `leads`; False = not recorded; default: all are recorded
    valid_samples        int (B,): samples from here on are padding; default: all are valid
    allow_missing_leads  mask the leads that are missing instead of refusing the signal
    derive_limb_leads    compute absent III, aVR, aVL, aVF from I and II (exact, Einthoven and Goldberger)
    resample             convert another sampling rate (polyphase) instead of refusing it
    crop                 keep the beginning of longer signals instead of refusing them
    age                  years (B,), or one number, for an encoder that reads it; None = not known (also of one record)

    A lead of one value throughout is masked, as a build of shards does; a record of such leads alone is refused.
    """

    leads: Sequence[str]
    units: str
    lead_mask: np.ndarray | None
    valid_samples: np.ndarray | None
    allow_missing_leads: bool
    derive_limb_leads: bool
    resample: bool
    crop: bool
    age: Any


@dataclass(frozen=True)
class _Form:
    """`SignalForm` with its defaults."""

    leads: Sequence[str] = STANDARD_LEADS
    units: str = "mV"
    lead_mask: np.ndarray | None = None
    valid_samples: np.ndarray | None = None
    allow_missing_leads: bool = False
    derive_limb_leads: bool = False
    resample: bool = False
    crop: bool = False
    age: Any = None


def conform_signal(
    contract: SignalContract, signal: np.ndarray, *, sampling_rate: float, **form: Unpack[SignalForm]
) -> ContractSignal:
    """Bring (B, L, T) or (L, T) to the contract.

    sampling_rate in Hz; form: see `SignalForm`. Shorter signals are zero-padded at the end.
    Raises UserError naming what differs and the argument that allows the conversion.
    """
    given = _Form(**form)
    as_given, signal = signal, _array(signal)
    columns = _columns(given.leads, *signal.shape[1:])
    _as_it_says(as_given, given.leads)
    millivolts = _millivolts(signal, given.units)
    valid = _valid_samples(given.valid_samples, len(millivolts), millivolts.shape[-1])
    out, mask = _twelve_leads(millivolts, columns, given)
    _check_values(out, mask, valid)
    _tell_order(out, mask, valid, named="leads" in form)
    age = checked_ages(given.age, len(out), contract.age)
    out, valid = at_rate(out, valid, contract, sampling_rate, given.resample)
    return at_length(out, mask, valid, contract, given.crop)._replace(age=age)


def _tell_order(signal: np.ndarray, mask: np.ndarray, valid: np.ndarray, named: bool) -> None:
    """Tell of records whose leads nobody named and whose limb leads stand in another order than the standard one, and
    of those whose limb leads contradict their names."""
    whole = np.flatnonzero(mask.all(axis=1) & (not named))
    found = [order for record in whole if (order := other_order(signal[record, :, : valid[record]]))]
    if found:
        log.warning(
            "other_order=%d of=%d remark=nothing says the order of the leads, and the limb leads are not in the "
            "standard one but as in %s; give leads",
            len(found),
            len(signal),
            found[0],
        )
        return
    limb = len(LIMB_LEADS)
    with_limbs = np.flatnonzero(mask[:, :limb].all(axis=1))
    slips = [slip for record in with_limbs if (slip := exchanged(signal[record, :limb, : valid[record]]))]
    if slips:
        log.warning(
            "limb_leads=%d of=%d remark=the limb leads contradict Einthoven's law as they are named, and fit it %s; "
            "they are read as named: correct the names",
            len(slips),
            len(signal),
            slips[0].how,
        )


def _valid_samples(given: np.ndarray | None, B: int, T: int) -> np.ndarray:
    if given is None:
        return np.full(B, T, dtype=np.int64)
    valid = np.clip(np.asarray(given, dtype=np.int64).reshape(-1), 0, T)
    if valid.shape != (B,):
        raise UserError(
            f"valid_samples has {valid.size} entries for {B} records", "give one number of samples per record"
        )
    return valid


def _twelve_leads(millivolts: np.ndarray, columns: list[int], form: _Form) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the signal at their places among the twelve, and which of these are recorded or derived."""
    B, _, T = millivolts.shape
    recorded = (
        np.ones((B, len(columns)), dtype=bool) if form.lead_mask is None else _mask(form.lead_mask, B, len(columns))
    )
    out = np.zeros((B, len(STANDARD_LEADS), T), dtype=np.float32)
    mask = np.zeros((B, len(STANDARD_LEADS)), dtype=bool)
    out[:, columns], mask[:, columns] = millivolts, recorded
    out[~mask] = 0.0
    if form.derive_limb_leads:
        _derive_limb_leads(out, mask)
    absent = [lead for k, lead in enumerate(STANDARD_LEADS) if k not in columns and not mask[:, k].all()]
    if absent and not form.allow_missing_leads:
        derivable = {"I", "II"} <= {STANDARD_LEADS[c] for c in columns} and set(absent) & {"III", "aVR", "aVL", "aVF"}
        raise UserError(
            f"the encoder was trained on 12 leads; missing here: {', '.join(absent)}",
            ("derive_limb_leads=True computes III, aVR, aVL and aVF from I and II; " if derivable else "")
            + "allow_missing_leads=True masks what is missing (embeddings are then less certain)",
        )
    return out, mask


def _array(signal: np.ndarray) -> np.ndarray:
    signal = np.asarray(signal)
    if signal.ndim == 2:
        signal = signal[None]
    if signal.ndim != 3 or not signal.size:
        raise UserError(
            f"signal has shape {signal.shape}", "give an array (B, leads, samples), or (leads, samples) for one record"
        )
    return signal


def _as_it_says(signal: Any, leads: Sequence[str]) -> None:
    """Raises UserError for what an array of another kind says and `np.asarray` forgets: that samples are masked out, or
    which lead a row or a column of a table is."""
    if isinstance(signal, np.ma.MaskedArray) and np.ma.getmaskarray(signal).any():
        raise UserError(
            f"signal is a masked array, {int(np.ma.getmaskarray(signal).sum())} of its samples are masked out",
            "fill the gaps, or hide the lead with lead_mask",
        )
    known = [lead.casefold() for lead in STANDARD_LEADS]
    asked = [str(lead).strip().casefold() for lead in leads]
    for axis in ("index", "columns"):
        named = getattr(signal, axis, None)  # of a pandas table
        if named is None or callable(named):
            continue
        names = [str(name).strip().casefold() for name in named]
        if sum(name in known for name in names) > len(names) // 2 and names != asked:
            raise UserError(
                f"signal is a table whose {axis} are {', '.join(map(str, named))[:120]}, `leads` are "
                f"{', '.join(map(str, leads))}",
                "give its numbers, one row per lead, and leads=[...] as the table names them",
            )


def _columns(leads: Sequence[str], given: int, samples: int) -> list[int]:
    if isinstance(leads, str) or not isinstance(leads, Sequence | np.ndarray):
        raise UserError(f"leads is {leads!r:.60} (a {type(leads).__name__})", "give leads=[...] with one name per row")
    names = {lead.casefold(): k for k, lead in enumerate(STANDARD_LEADS)}
    keys = [str(lead).strip().casefold() for lead in leads]
    unknown = [str(lead) for lead, key in zip(leads, keys, strict=True) if key not in names]
    if unknown:
        raise UserError(
            f"unknown leads {', '.join(unknown)}",
            f"name them among {', '.join(STANDARD_LEADS)} (any order, any letter case)",
        )
    if len(set(keys)) != len(keys):
        raise UserError("a lead is named twice in `leads`", "name each row of the signal once")
    if len(keys) != given:
        raise UserError(
            f"signal has {given} leads but {len(keys)} names were given ({', '.join(leads)})",
            "transpose it: one row per lead, one column per sample"
            if len(keys) == samples
            else "give leads=[...] with one name per row",
        )
    return [names[key] for key in keys]


def _millivolts(signal: np.ndarray, units: str) -> np.ndarray:
    factor = PER_MILLIVOLT.get(str(units).strip().casefold())
    if factor is None:
        raise UserError(f"unknown units {units!r}", 'use units="mV" or units="uV"')
    if not np.issubdtype(signal.dtype, np.floating) and not np.issubdtype(signal.dtype, np.integer):
        raise UserError(f"signal is {signal.dtype}, not real numbers", "give mV as floats: signal.astype(np.float32)")
    if not np.issubdtype(signal.dtype, np.floating) and factor == 1.0:
        raise UserError(
            f"signal is {signal.dtype}, which looks like raw counts, not mV",
            'divide by the gain (counts per mV), or give units="uV"',
        )
    valued = np.stack([without_sentinels(record) for record in signal])
    return (valued / factor).astype(np.float32)


def _mask(lead_mask: np.ndarray, B: int, L: int) -> np.ndarray:
    mask = np.asarray(lead_mask, dtype=bool)
    if mask.shape not in ((L,), (B, L)):
        raise UserError(f"lead_mask has shape {mask.shape}", f"give ({L},) or ({B}, {L}), in the order of `leads`")
    return np.broadcast_to(mask, (B, L))


def _derive_limb_leads(out: np.ndarray, mask: np.ndarray) -> None:
    first, second = out[:, 0], out[:, 1]
    derived = {2: second - first, 3: -(first + second) / 2, 4: first - second / 2, 5: second - first / 2}
    for k, values in derived.items():
        rows = mask[:, 0] & mask[:, 1] & ~mask[:, k]
        out[rows, k] = values[rows]
        mask[rows, k] = True


def _check_values(signal: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> None:
    """Raises UserError for what is no ECG in mV. Sets to 0 what is no signal, and takes flat leads out of `mask`."""
    inside = np.arange(signal.shape[-1]) < valid[:, None]
    if not mask.any(axis=1).all():
        raise UserError(f"record {int(np.argmin(mask.any(axis=1)))} has no recorded lead", "leave it out")
    if not (valid > 0).all():
        raise UserError(f"record {int(np.argmin(valid > 0))} has no valid sample", "leave it out")
    bad = (~np.isfinite(signal) & inside[:, None, :]).any(axis=-1)
    if bad.any():
        record = int(np.argmax(bad.any(axis=1)))
        names = ", ".join(lead for lead, flag in zip(STANDARD_LEADS, bad[record], strict=True) if flag)
        raise UserError(
            f"record {record}: NaN or infinite samples in lead {names}, or numbers that stand for none (-9999)",
            "fill the gaps, or hide the lead with lead_mask",
        )
    signal[~np.broadcast_to(inside[:, None, :], signal.shape)] = 0.0
    spread = signal.max(axis=-1) - signal.min(axis=-1)
    if (spread > IMPLAUSIBLE_MV).any():
        record, lead = (int(k) for k in np.argwhere(spread > IMPLAUSIBLE_MV)[0])
        raise UserError(
            f"record {record}: lead {STANDARD_LEADS[lead]} spans {spread[record, lead]:.0f} mV, which no ECG does",
            'if these are microvolts give units="uV"; if they are counts divide by the gain',
        )
    most = np.where(mask, spread, 0).max(axis=1)
    small = (most > 0) & (most < IMPLAUSIBLY_FLAT_MV)
    if small.any():
        record = int(np.argmax(small))
        raise UserError(
            f"record {record}: no lead spans more than {1000 * most[record]:.2g} uV, which no heart does",
            "if these are volts multiply by 1000; if they were scaled to one give mV",
        )
    flat = mask & np.stack([np.ptp(record[:, :n], axis=-1) == 0 for record, n in zip(signal, valid, strict=True)])
    if (flat | ~mask).all(axis=1).any():
        record = int(np.argmax((flat | ~mask).all(axis=1)))
        raise UserError(
            f"record {record}: all {int(mask[record].sum())} recorded leads are flat: no ECG", "leave it out"
        )
    if flat.any():
        log.warning(
            "flat_leads=%d remark=a lead of one value throughout is masked, as in shards: it holds no signal",
            int(flat.sum()),
        )
    mask &= ~flat
    middle = np.stack([np.median(record[:, :n], axis=-1) for record, n in zip(signal, valid, strict=True)])
    far = mask & (np.abs(middle) > OFFSET_MILLIVOLTS)
    if far.any():
        log.warning(
            "offset_leads=%d remark=a lead whose median lies more than %g mV from 0 is read as recorded, and an "
            "offset changes the embedding; subtract the ADC zero or the baseline, or filter it out",
            int(far.sum()),
            OFFSET_MILLIVOLTS,
        )


def at_rate(
    signal: np.ndarray, valid: np.ndarray, contract: SignalContract, rate: float, resample: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Signal (B, L, T) taken at `rate` Hz, and its valid samples, at the contract's rate. Raises UserError for a rate
    that is none, and for another one unless `resample`."""
    if isinstance(rate, np.ndarray) and rate.ndim == 0:
        rate = rate.item()
    if not isinstance(rate, Real) or not rate > 0:
        raise UserError(f"sampling_rate {rate!r:.60} is not a rate", "give samples per second")
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:  # a served encoder is told it by whoever asks
        raise UserError(
            f"sampling_rate {rate!r:.60} is not between {RATE_RANGE[0]:g} and {RATE_RANGE[1]:g} Hz",
            "give samples per second, 500 for example",
        )
    if is_same_rate(rate, contract.sampling_rate, min(signal.shape[-1], contract.samples)):
        return signal, valid
    if not resample:
        raise UserError(
            f"signal is sampled at {rate:g} Hz, the encoder was trained at {contract.sampling_rate:g} Hz",
            "resample=True converts it (polyphase)",
        )
    ratio = contract.sampling_rate / rate
    with needed_by("another sampling rate", "shards"):
        rows = resampled(signal.reshape(-1, signal.shape[-1]), ratio, contract.samples)
    log.info("resample=%g->%g Hz", rate, contract.sampling_rate)
    out = rows.reshape(*signal.shape[:-1], -1).astype(np.float32)
    return out, np.minimum(np.round(valid * ratio).astype(np.int64), out.shape[-1])


def at_length(
    signal: np.ndarray, mask: np.ndarray, valid: np.ndarray, contract: SignalContract, crop: bool
) -> ContractSignal:
    """The contract's length: shorter ones are padded, and told under a half of it. Raises UserError for a longer one
    unless `crop`."""
    T = signal.shape[-1]
    if contract.samples < T:
        if not crop:
            raise UserError(
                f"signal lasts {T / contract.sampling_rate:g} s ({T} samples), "
                f"the encoder reads {contract.seconds:g} s ({contract.samples})",
                "crop=True keeps the beginning; or cut windows yourself",
            )
        signal, valid = signal[:, :, : contract.samples], np.minimum(valid, contract.samples)
    elif contract.samples > T:
        signal = np.pad(signal, ((0, 0), (0, 0), (0, contract.samples - T)))
        log.info("padded=%d->%d samples remark=the padding is masked", T, contract.samples)
    short = valid < contract.samples / 2
    if short.any():
        log.warning(
            "short_records=%d remark=the shortest lasts %.3g of the %g s that the encoder reads: the rest is masked, "
            "and an embedding of so little says little",
            int(short.sum()),
            valid.min() / contract.sampling_rate,
            contract.seconds,
        )
    signal = np.ascontiguousarray(signal, dtype=np.float32)
    signal[~mask] = 0.0
    return ContractSignal(signal, mask, valid)
