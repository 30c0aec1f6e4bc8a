"""One ECG by the names that a command line gives: a WFDB record, a .npy file, or a key of a shard set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

    lead_mask (L,); None: every lead counts. valid_samples: how many of the T are signal; None: all. remarks: what a
    reader of the result must know of the recording. age: of the patient in years, where the recording says it.
    """

    millivolts: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    origin: str
    lead_mask: np.ndarray | None = None
    valid_samples: int | None = None
    remarks: tuple[str, ...] = ()
    age: float | None = None


def read_signal(
    path: Path | None,
    *,
    shards: Path | None = None,
    key: str | None = None,
    leads: str | None = None,
    sampling_rate: float | None = None,
    units: str | None = None,
    age: float | None = None,
) -> Signal:
    """A record of a shard set (`shards`, `key`), a .npy file in mV (or `units` uV), or a WFDB record.

    leads, sampling_rate, units and age are those of a .npy file, which says none of them. Raises UserError naming the
    file and what is wrong, also where a record says otherwise than they.
    """
    given = tuple(name.strip() for name in leads.split(",")) if leads else ()
    if key is not None:
        assert shards is not None
        signal = _from_shards(shards, key)
        _agree(signal, STANDARD_LEADS, given, sampling_rate, units)
        return _of_age(signal, age)
    assert path is not None
    if not path.name:
        raise UserError(f"{path} is no ECG", "give a WFDB record or a .npy file")
    if path.suffix == ".npy":
        signal = _from_npy(path, given or STANDARD_LEADS, sampling_rate, units)
        if not given:
            _check_order(signal)
        return _of_age(signal, age)
    if path.suffix in _OTHER_FILES and path.is_file() and not path.with_name(f"{path.name}.hea").exists():
        raise UserError(
            f"{path} is neither a WFDB record nor a .npy file",
            "save the array (leads x samples) in mV with numpy.save, or build shards of it and give --shards and --key",
        )
    signal, named = _from_wfdb(path)
    _agree(signal, named, given, sampling_rate, units)
    return _of_age(signal, age)


def _check_order(signal: Signal) -> None:
    """Raises UserError for an array whose leads nobody named and whose limb leads stand in another order."""
    from cardialign.data_shards.signal.limb_leads import other_order

    values = signal.millivolts
    order = other_order(values) if values.dtype.kind in "iuf" and values.ndim == 2 and values.size else ""
    if order:
        raise UserError(
            f"{signal.origin}: nothing says the order of its leads, and its limb leads are not in the standard one but "
            f"as in {order}",
            "name the leads of its rows with --leads",
        )


_OTHER_FILES = (".npz", ".csv", ".txt", ".xml", ".edf", ".h5", ".hdf5", ".parquet", ".dcm")


def _agree(
    signal: Signal, named: tuple[str, ...], leads: tuple[str, ...], sampling_rate: float | None, units: str | None
) -> None:
    """Raises UserError where a record that says its leads, all `named` ones, its rate and its units is given others."""
    if units is not None:
        raise UserError(
            f"{signal.origin} says its units itself, --units says {units}",
            "leave out --units; where the record is wrong, correct its gain",
        )
    if sampling_rate is not None and abs(signal.sampling_rate - sampling_rate) > 1e-3 * sampling_rate:
        raise UserError(
            f"{signal.origin} says {signal.sampling_rate:g} Hz, --sampling-rate says {sampling_rate:g}",
            "leave out --sampling-rate; where the record is wrong, correct its header",
        )
    from cardialign.data_shards.reading.csv_signal import same_leads

    if leads and not same_leads(leads, named):
        raise UserError(
            f"{signal.origin} has the leads {', '.join(named)}, --leads says {', '.join(leads)}",
            "leave out --leads; where the record is wrong, correct its header",
        )


def _of_age(signal: Signal, age: float | None) -> Signal:
    """The signal of a patient of this age, where one is given. Raises UserError where the record says another."""
    from cardialign.data_shards.sources.shared.demographics import SAME_AGE

    if age is None:
        return signal
    if signal.age is not None and not abs(signal.age - age) <= SAME_AGE:
        raise UserError(
            f"{signal.origin} says an age of {signal.age:g} years, --age says {age:g}",
            "leave out --age; where the record is wrong, correct it",
        )
    return replace(signal, age=age)


def _from_shards(shards: Path, key: str) -> Signal:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    shard_set = ShardSet.open(shards)
    record = shard_set.read_record(int(shard_set.select(keys=[key]).rows[0]))
    return Signal(
        record.millivolts(),
        STANDARD_LEADS,
        record.sampling_rate,
        key,
        record.lead_mask,
        record.valid_samples,
        _remarks(record.quality),
        record.age_years,
    )


def _from_npy(path: Path, names: tuple[str, ...], sampling_rate: float | None, units: str | None) -> Signal:
    import numpy as np

    from cardialign.data_shards.array_files import load_array
    from cardialign.data_shards.reading.no_value import without_sentinels

    if sampling_rate is None:
        raise UserError(f"{path} does not say its sampling rate", "give --sampling-rate")
    try:
        values = load_array(path)
        if values.dtype.kind not in "biufc":
            raise ValueError("it holds no single array of numbers")
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as a .npy array: {error}",
            "save a float array (leads x samples) in mV with numpy.save",
        ) from None
    values = without_sentinels(values)  # as the file holds them, before a unit
    if units == "uV" and values.dtype.kind in "iuf":
        values = values.astype(np.float64) / 1000
    flat: tuple[str, ...] = ()
    if values.dtype.kind in "iuf" and values.ndim == 2 and len(values) == len(names) and values.size:
        flat = tuple(name for name, lead in zip(names, values, strict=True) if (lead == lead[0]).all())
    return Signal(values, names, sampling_rate, str(path), remarks=_remarks({"flat": flat}))


def _from_wfdb(path: Path) -> tuple[Signal, tuple[str, ...]]:
    """Leads by their standard names, other channels left out; a lead without any value counts as not recorded, one that
    is flat throughout is masked, as in shards. And the names as the header has them."""
    from cardialign.data_shards.reading.wfdb.reader import read_wfdb, standard_leads
    from cardialign.data_shards.signal import quality
    from cardialign.data_shards.sources.shared.demographics import header_comments, person

    record = path.with_suffix("") if path.suffix in (".hea", ".dat") else path
    try:
        signal = read_wfdb(record)
        twelve = standard_leads(signal, str(record))
    except RecordRejected as rejected:
        raise UserError(
            f"{record} cannot be read: {rejected.detail}", "give a WFDB record (its .hea and .dat stand side by side)"
        ) from None
    gaps = twelve.flags.get("non-finite", ())
    rows = [STANDARD_LEADS.index(lead) for lead in gaps]
    empty = [lead for lead, row in zip(gaps, rows, strict=True) if not twelve.counts[row].any()]
    partly = [lead for lead in gaps if lead not in empty]
    if partly:
        raise UserError(
            f"{record} has samples without a value in lead {', '.join(partly)}, which would be read as 0 mV",
            "cut the record to the part that has values, or fill the gaps and give the array as .npy in mV",
        )
    kept = [row for row, lead in enumerate(STANDARD_LEADS) if twelve.lead_mask[row] and lead not in empty]
    millivolts = twelve.counts[kept].astype("float32") / twelve.gain[kept, None]
    flags = quality.assess(twelve.counts, twelve.gain, twelve.lead_mask, signal.sampling_rate)
    flat = tuple(lead for lead in flags.get("flat", ()) if lead not in empty)
    told = {flag: leads for flag, leads in twelve.flags.items() if flag != "non-finite"}
    remarks = _remarks({**told, **({"offset": flags["offset"]} if "offset" in flags else {}), "flat": flat})
    if empty:
        remarks += (f"no value in lead {', '.join(empty)}: not recorded",)
    if twelve.other_channels:
        remarks += (f"channels that are no lead were left out: {', '.join(twelve.other_channels)}",)
    names = tuple(STANDARD_LEADS[row] for row in kept)
    lead_mask = quality.usable(twelve.lead_mask, {"flat": flat})[kept]
    if kept and not lead_mask.any():
        raise UserError(f"{record}: all {len(kept)} recorded leads are flat: no ECG", "leave it out")
    rate = float(signal.sampling_rate)
    age = person(header_comments(record.with_name(f"{record.name}.hea")))["age_years"]
    return Signal(millivolts, names, rate, str(record), lead_mask, remarks=remarks, age=age), signal.lead_names


_WORDS = {
    "non-finite": "samples without a value, which stand as 0 mV",
    "checksum": "not the numbers that the header's checksum or first value is of",
    "surplus": "the signal file holds more than its header announces",
    "coarse": "stored in steps of more than 2 uV",
    "flat": "one value throughout: masked, it holds no signal",
    "offset": "its median lies far from 0, which changes the embedding",
}
"""Quality flags of which a reader of one embedding must know."""


def _remarks(flags: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(f"{words} (lead {', '.join(flags[flag])})" for flag, words in _WORDS.items() if flags.get(flag))
