"""The order of an array's leads is not believed where its limb leads contradict it: Einthoven's law and Goldberger's
equations, written out here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.registry.read_signal import read_signal
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import RecordRejected, UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal import quality
from cardialign.data_shards.signal.limb_leads import exchanged, other_order
from cardialign.data_shards.sources import open_source
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.given_signal import conform_signal
from tests.support.small_encoder import SPEC
from tests.support.wfdb_files import write_record

RNG = np.random.default_rng(5)
SECONDS = np.arange(SPEC.samples) / SPEC.sampling_rate


def twelve(noise: float = 0.002) -> np.ndarray:
    """float64 (12, T) in mV: the voltages of the three limbs and six chest electrodes, and the leads made of them."""
    right, left, foot, *chest = (
        np.exp(-((((SECONDS * 1.2 + shift) % 1) - 0.5) ** 2) / 0.002) * size
        for size, shift in zip((-0.4, 0.3, 0.7, 0.2, 0.5, 0.9, 1.2, 1.0, 0.6), np.linspace(0, 0.06, 9), strict=True)
    )
    centre = (right + left + foot) / 3
    limbs = [left - right, foot - right, foot - left]
    augmented = [right - (left + foot) / 2, left - (right + foot) / 2, foot - (right + left) / 2]
    leads = np.stack([*limbs, *augmented, *(each - centre for each in chest)])
    return leads + RNG.normal(0, noise, leads.shape)


ORDERS = {
    "as MIMIC-IV-ECG": [0, 1, 2, 3, 5, 4, *range(6, 12)],
    "V1 to V6, then I": [*range(6, 12), *range(6)],
    "V6 to V1": list(range(11, -1, -1)),
    "I, II, *, *, *, *, *, *, III, aVR, aVL, aVF": [0, 1, *range(6, 12), 2, 3, 4, 5],
    "I, II, III, *, *, *, *, *, *, aVF, aVL, aVR": [0, 1, 2, *range(6, 12), 5, 4, 3],
    "aVF, aVL, aVR, I, II, III": [5, 4, 3, 0, 1, 2, *range(6, 12)],
    "aVL, I, aVR, II, aVF, III": [4, 0, 3, 1, 5, 2, *range(6, 12)],
}
"""By what is said of each: those in use, then the eight leads that a device measures before the four that follow from
them, names in alphabetical order with capitals first and in capitals, and Cabrera's with aVR as it is."""


@pytest.mark.parametrize("order", ORDERS)
def test_an_array_without_names_in_another_order_is_refused_and_with_them_read(tmp_path: Path, order: str) -> None:
    right, rows = twelve(), ORDERS[order]
    names = ",".join(STANDARD_LEADS[row] for row in rows)
    assert other_order(right) == "" and order in other_order(right[rows])
    np.save(tmp_path / "a.npy", right[rows])
    how = {"sampling_rate": str(SPEC.sampling_rate)}
    source = open_source("arrays", tmp_path, **how)
    with pytest.raises(
        RecordRejected, match=f"nothing says the order of its leads.*{re.escape(order)}.*set the option leads"
    ):
        source.read(next(iter(source.entries())))
    named = open_source("arrays", tmp_path, leads=names, **how)
    read = named.read(next(iter(named.entries())))
    np.testing.assert_allclose(read.millivolts(), right, atol=1e-3)
    with pytest.raises(UserError, match=f"nothing says the order of its leads.*{re.escape(order)}"):
        read_signal(tmp_path / "a.npy", sampling_rate=SPEC.sampling_rate)
    assert (
        read_signal(tmp_path / "a.npy", sampling_rate=SPEC.sampling_rate, leads=names).leads[0] == names.split(",")[0]
    )


def test_whatever_the_order_it_is_told_where_the_limb_leads_stand() -> None:
    right = twelve()
    for seed in range(20):
        rows = np.random.default_rng(seed).permutation(12)
        told = other_order(right[rows])
        assert told == "" or [
            STANDARD_LEADS[row] for row, name in zip(rows, told.split(" (")[0].split(", "), strict=True) if name != "*"
        ] == [name for name in told.split(" (")[0].split(", ") if name != "*"]
        assert told, rows


def test_cabrera_s_order_turns_avr_upside_down() -> None:
    right = twelve()
    cabrera = np.stack([right[4], right[0], -right[3], right[1], right[5], right[2], *right[6:]])
    assert "Cabrera" in other_order(cabrera)


def test_a_batch_of_which_some_stand_in_another_order_is_told(caplog: pytest.LogCaptureFixture) -> None:
    batch = np.stack([twelve(), twelve()[ORDERS["as MIMIC-IV-ECG"]]]).astype(np.float32)
    contract = SignalContract.of(SPEC, "none", 8, 0.0)
    conform_signal(contract, batch, sampling_rate=SPEC.sampling_rate, leads=STANDARD_LEADS)
    conform_signal(contract, batch[:1], sampling_rate=SPEC.sampling_rate)
    assert "other_order" not in caplog.text
    conform_signal(contract, batch, sampling_rate=SPEC.sampling_rate)
    assert "other_order=1 of=2" in caplog.text and "as MIMIC-IV-ECG" in caplog.text


SLIPS = {
    "aVL and aVF exchanged": ([0, 1, 2, 3, 5, 4], 1, ("aVL", "aVF")),
    "I and II exchanged": ([1, 0, 2, 3, 4, 5], 1, ("I", "II")),
    "II and aVR exchanged": ([0, 3, 2, 1, 4, 5], 1, ("II", "aVR")),
    "aVR upside down": ([0, 1, 2, 3, 4, 5], [1, 1, 1, -1, 1, 1], ("aVR",)),
    "III upside down": ([0, 1, 2, 3, 4, 5], [1, 1, -1, 1, 1, 1], ("III",)),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_leads_whose_names_contradict_the_law_are_flagged_told_and_left_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, slip: str
) -> None:
    rows, sign, leads = SLIPS[slip]
    values = twelve()
    values[:6] = values[rows] * np.broadcast_to(np.array(sign, dtype=float), 6)[:, None]
    found = exchanged(values[:6])
    assert found is not None and found.leads == leads and slip in found.how
    write_record(tmp_path / "r", np.rint(values * 1000).astype(int), rate=f"{SPEC.sampling_rate:g}", gains="1000/mV")
    summary = build_shards(open_source("wfdb", tmp_path, salt="0123456789abcdef"), tmp_path / "set", SetPlan(SPEC))
    assert summary.quality == {"limb-leads": 1} and "limb-leads records=1 of=1" in caplog.text
    record = ShardSet.open(tmp_path / "set").read_record(0)
    assert record.quality == {"limb-leads": leads} and record.lead_mask.all()
    np.testing.assert_allclose(record.millivolts(), values, atol=1e-3)
    caplog.clear()
    signal = read_signal(tmp_path / "r")
    contract = SignalContract.of(SPEC, "none", 8, 0.0)
    conform_signal(contract, signal.millivolts, sampling_rate=SPEC.sampling_rate, leads=signal.leads)
    assert "limb_leads=1 of=1" in caplog.text and slip in caplog.text


def test_electrodes_exchanged_at_the_patient_and_leads_that_are_absent_obey_the_law() -> None:
    """Both arms exchanged: I turns over, II and III, aVR and aVL stand for one another, aVF stays."""
    right = twelve()
    arms = np.stack([-right[0], right[2], right[1], right[4], right[3], right[5]])
    assert exchanged(right[:6]) is None and exchanged(arms) is None
    counts, gain, mask = np.rint(right * 1000).astype(np.int16), np.full(12, 1000.0), np.ones(12, dtype=bool)
    counts[[4, 5]], mask[2] = counts[[5, 4]], False
    assert "limb-leads" in quality.assess(counts, gain, np.ones(12, dtype=bool), SPEC.sampling_rate)
    assert "limb-leads" not in quality.assess(counts, gain, mask, SPEC.sampling_rate)


def test_an_unknown_lead_is_refused_with_the_option_that_names_it(tmp_path: Path) -> None:
    values = twelve()[:2]
    write_record(
        tmp_path / "r", np.rint(values * 1000).astype(int), leads=("I-REF", "A2"), rate=f"{SPEC.sampling_rate:g}",
        gains="1000/mV",
    )  # fmt: skip
    source = open_source("wfdb", tmp_path)
    with pytest.raises(RecordRejected, match=r"'I-REF', 'A2'.*--lead-names I-REF=I"):
        source.read(next(iter(source.entries())))
    named = open_source("wfdb", tmp_path, lead_names="I-REF=I")
    np.testing.assert_allclose(named.read(next(iter(named.entries()))).millivolts()[0], values[0], atol=1e-3)


@pytest.mark.parametrize("values", ["noise", "flat lead", "gap", "noisy"])
def test_what_fits_no_order_in_use_says_nothing(values: str) -> None:
    array = {"noise": RNG.normal(0, 0.5, (12, 400)), "noisy": twelve(0.2)}.get(values, twelve())
    if values == "flat lead":
        array = array[ORDERS["as MIMIC-IV-ECG"]]
        array[4] = 0
    if values == "gap":
        array[0, 3] = np.nan
    assert other_order(array) == ""
