"""A signal is brought to the encoder's contract only as far as the caller allows; all else is named with the remedy."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.arrays import Arrays
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.given_signal import conform_signal

CONTRACT = SignalContract.of(SignalSpec(500, 2), "none", 8, 0.0)
RNG = np.random.default_rng(0)


def ecg(leads=12, samples=1000, batch=2):
    return RNG.normal(0, 0.3, (batch, leads, samples)).astype(np.float32)


def test_a_conforming_signal_passes_unchanged():
    signal = ecg()
    out = conform_signal(CONTRACT, signal, sampling_rate=500)
    assert np.array_equal(out.signal, signal)
    assert out.lead_mask.all() and (out.valid_samples == 1000).all()
    assert conform_signal(CONTRACT, signal[0], sampling_rate=500.0).signal.shape == (1, 12, 1000)


def test_leads_are_ordered_by_name_in_any_letter_case():
    signal = ecg()
    names = [lead.lower() for lead in reversed(STANDARD_LEADS)]
    assert np.array_equal(conform_signal(CONTRACT, signal[:, ::-1], sampling_rate=500, leads=names).signal, signal)


def test_eight_leads_are_refused_by_name_and_masked_when_allowed():
    eight = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    with pytest.raises(
        UserError, match=r"missing here: III, aVR, aVL, aVF(.|\n)*derive_limb_leads=True(.|\n)*allow_missing_leads=True"
    ):
        conform_signal(CONTRACT, ecg(8), sampling_rate=500, leads=eight)
    out = conform_signal(CONTRACT, ecg(8), sampling_rate=500, leads=eight, allow_missing_leads=True)
    assert [lead for lead, there in zip(STANDARD_LEADS, out.lead_mask[0], strict=True) if not there] == [
        "III",
        "aVR",
        "aVL",
        "aVF",
    ]
    assert not out.signal[:, 2:6].any()


def test_limb_leads_are_derived_by_einthovens_law():
    signal = ecg(8)
    out = conform_signal(
        CONTRACT,
        signal,
        sampling_rate=500,
        leads=["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"],
        derive_limb_leads=True,
    ).signal
    lead = {name: out[:, k] for k, name in enumerate(STANDARD_LEADS)}
    np.testing.assert_allclose(lead["I"] + lead["III"], lead["II"], atol=1e-6)
    np.testing.assert_allclose(lead["aVR"] + lead["aVL"] + lead["aVF"], 0, atol=1e-6)
    np.testing.assert_allclose(lead["aVL"], (lead["I"] - lead["III"]) / 2, atol=1e-6)


def test_eight_unnamed_leads_and_unknown_or_repeated_names_are_refused():
    with pytest.raises(UserError, match=r"signal has 8 leads but 12 names"):
        conform_signal(CONTRACT, ecg(8), sampling_rate=500)
    with pytest.raises(UserError, match=r"unknown leads X, MLII"):
        conform_signal(CONTRACT, ecg(2), sampling_rate=500, leads=["X", "MLII"])
    with pytest.raises(UserError, match="named twice"):
        conform_signal(CONTRACT, ecg(2), sampling_rate=500, leads=["I", "i"])


def test_another_rate_is_refused_naming_both_and_converted_when_allowed():
    seconds = np.arange(500) / 250
    signal = np.broadcast_to(np.sin(2 * np.pi * 5 * seconds), (1, 12, 500)).astype(np.float32)
    with pytest.raises(UserError, match=r"250 Hz, the encoder was trained at 500 Hz(.|\n)*resample=True"):
        conform_signal(CONTRACT, signal, sampling_rate=250)
    out = conform_signal(CONTRACT, signal, sampling_rate=250, resample=True)
    expected = np.sin(2 * np.pi * 5 * np.arange(1000) / 500)
    assert out.signal.shape == (1, 12, 1000)
    np.testing.assert_allclose(out.signal[0, 0, 50:-50], expected[50:-50], atol=5e-3)


def test_a_measured_rate_is_the_rate_it_measures_unless_samples_drift_from_their_times() -> None:
    signal = ecg()
    out = conform_signal(CONTRACT, signal, sampling_rate=499.98)
    assert np.array_equal(out.signal, signal)
    with pytest.raises(UserError, match=r"sampled at 499\.7 Hz"):
        conform_signal(CONTRACT, signal, sampling_rate=499.7)
    time = np.arange(1000)
    tone = np.tile(np.sin(2 * np.pi * 11 * time / 499.7), (1, 12, 1))
    out = conform_signal(CONTRACT, tone, sampling_rate=499.7, resample=True, crop=True)
    assert np.abs(out.signal - np.sin(2 * np.pi * 11 * time / 500))[:, :, 20:980].max() < 0.005


def test_shorter_is_padded_and_masked_longer_is_refused_unless_cropped():
    out = conform_signal(CONTRACT, ecg(samples=700), sampling_rate=500)
    assert (out.valid_samples == 700).all() and not out.signal[:, :, 700:].any()
    long = ecg(samples=1300)
    with pytest.raises(
        UserError, match=r"lasts 2\.6 s \(1300 samples\), the encoder reads 2 s \(1000\)(.|\n)*crop=True"
    ):
        conform_signal(CONTRACT, long, sampling_rate=500)
    assert np.array_equal(conform_signal(CONTRACT, long, sampling_rate=500, crop=True).signal, long[:, :, :1000])


def test_less_than_half_of_what_is_read_is_told_however_the_end_is_said(caplog):
    conform_signal(CONTRACT, ecg(samples=500, batch=1), sampling_rate=500)
    assert "short_records" not in caplog.text
    conform_signal(CONTRACT, ecg(samples=60, batch=1), sampling_rate=500)
    assert "short_records=1 remark=the shortest lasts 0.12 of the 2 s" in caplog.text
    caplog.clear()
    conform_signal(CONTRACT, ecg(batch=1), sampling_rate=500, valid_samples=np.array([60]))
    assert "the shortest lasts 0.12 of the 2 s" in caplog.text


def test_nan_names_record_and_lead_and_is_accepted_in_a_masked_lead():
    signal = ecg()
    signal[1, 7, 30] = np.nan
    with pytest.raises(UserError, match=r"record 1: NaN or infinite samples in lead V2"):
        conform_signal(CONTRACT, signal, sampling_rate=500)
    mask = np.ones(12, dtype=bool)
    mask[7] = False
    out = conform_signal(CONTRACT, signal, sampling_rate=500, lead_mask=mask)
    assert np.isfinite(out.signal).all() and not out.lead_mask[:, 7].any()


@pytest.mark.parametrize(("number", "units"), [(-99.0, "mV"), (999.0, "mV"), (-32768.0, "uV"), (9999.0, "uV")])
def test_a_number_that_stands_for_no_value_is_none_as_in_a_build_of_shards(number, units):
    given = ecg() * np.float32(1000 if units == "uV" else 1)
    given[1, 3, 40:60] = number
    with pytest.raises(UserError, match=r"record 1: .*lead aVR, or numbers that stand for none"):
        conform_signal(CONTRACT, given, sampling_rate=500, units=units)
    mask = np.ones((2, 12), dtype=bool)
    mask[1, 3] = False
    hidden = conform_signal(CONTRACT, given, sampling_rate=500, units=units, lead_mask=mask)
    assert np.isfinite(hidden.signal).all() and hidden.lead_mask.sum() == 23
    padded, right = given.copy(), ecg()
    padded[:, :, :600], padded[:, :, 600:] = right[:, :, :600], -99
    out = conform_signal(CONTRACT, padded, sampling_rate=500, valid_samples=np.array([600, 600]))
    assert np.array_equal(out.signal[:, :, :600], right[:, :, :600]) and not out.signal[:, :, 600:].any()


def test_microvolts_are_converted_when_named_and_caught_when_not():
    signal = ecg()
    np.testing.assert_allclose(
        conform_signal(CONTRACT, signal * 1000, sampling_rate=500, units="uV").signal, signal, rtol=1e-5
    )
    with pytest.raises(UserError, match=r'record 0: lead I spans \d+ mV(.|\n)*units="uV"'):
        conform_signal(CONTRACT, signal * 1000, sampling_rate=500)
    with pytest.raises(UserError, match="looks like raw counts"):
        conform_signal(CONTRACT, (signal * 200).astype(np.int16), sampling_rate=500)
    for kind in (object, bool, np.complex64):
        with pytest.raises(UserError, match="not real numbers"):
            conform_signal(CONTRACT, signal.astype(kind), sampling_rate=500, units="uV")
    with pytest.raises(UserError, match="unknown units 'V'"):
        conform_signal(CONTRACT, signal, sampling_rate=500, units="V")


def test_an_offset_that_changes_the_embedding_is_told_and_a_transposed_array_is_called_that(caplog):
    signal = ecg()
    conform_signal(CONTRACT, signal + 0.6, sampling_rate=500)
    assert "offset" not in caplog.text
    signal[0, 4] -= 2048 / 200  # the middle of 12 bits at 200 counts per mV
    out = conform_signal(CONTRACT, signal, sampling_rate=500)
    assert "offset_leads=1 " in caplog.text and np.array_equal(out.signal, signal)
    caplog.clear()
    conform_signal(CONTRACT, signal[:1, :, :500], sampling_rate=500)  # the padding counts for nothing
    assert "offset_leads=1 " in caplog.text
    with pytest.raises(UserError, match="signal has 1000 leads but 12 names") as caught:
        conform_signal(CONTRACT, signal[0].T, sampling_rate=500)
    assert "transpose it" in caught.value.remedy


def test_a_record_without_any_lead_is_named():
    mask = np.ones((2, 12), dtype=bool)
    mask[1] = False
    with pytest.raises(UserError, match="record 1 has no recorded lead"):
        conform_signal(CONTRACT, ecg(), sampling_rate=500, lead_mask=mask)


def test_the_contract_survives_json_and_refuses_what_it_does_not_know():
    values = CONTRACT.to_dict()
    assert SignalContract.from_dict(values) == CONTRACT
    with pytest.raises(UserError, match="version 9"):
        SignalContract.from_dict({**values, "version": 9})


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", ""), ("samples", "1000"), ("samples", None), ("embedding_dim", float("inf")), ("seconds", [10])],
)
def test_a_figure_of_another_kind_in_a_contract_is_a_sentence(key: str, value: object) -> None:
    values = SignalContract.of(SignalSpec(500, 10), "none", 64, 0.0).to_dict() | {key: value}
    with pytest.raises(UserError, match="cannot be fulfilled"):
        SignalContract.from_dict(values)


def test_volts_taken_for_millivolts_are_refused_and_a_low_voltage_is_not():
    with pytest.raises(UserError, match=r"record 1: no lead spans more than .* uV.*(.|\n)*volts multiply by 1000"):
        conform_signal(CONTRACT, np.stack([ecg()[0], ecg()[0] / 1000]), sampling_rate=500)
    conform_signal(CONTRACT, ecg() / 30, sampling_rate=500)  # the lowest voltages that are still an ECG's


def test_flat_leads_are_masked_as_a_build_masks_them_and_a_record_of_them_alone_is_refused(tmp_path, caplog):
    """The same record by way of a shard and by way of an array is the same input of the encoder."""
    signal = ecg()[0]
    signal[4], signal[7] = 0.0, 1.25
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", signal)
    build_shards(Arrays(tmp_path / "in", sampling_rate=500), tmp_path / "set", SetPlan(CONTRACT.spec), workers=1)
    stored = ShardSet.open(tmp_path / "set").read_record(0)
    out = conform_signal(CONTRACT, np.stack([signal, ecg()[0]]), sampling_rate=500)
    assert out.lead_mask[0].tolist() == stored.lead_mask.tolist() and (~out.lead_mask[0]).nonzero()[0].tolist() == [
        4,
        7,
    ]
    assert out.lead_mask[1].all() and not out.signal[0, [4, 7]].any() and "flat_leads=2 " in caplog.text
    for silent in (np.zeros((1, 12, 1000)), np.full((12, 400), 1.0)):  # the second is padded by the contract
        with pytest.raises(UserError, match="record 0: all 12 recorded leads are flat"):
            conform_signal(CONTRACT, silent, sampling_rate=500)
    two = np.stack([ecg()[0], np.where(np.arange(12)[:, None] < 2, 0.0, ecg()[0])])
    with pytest.raises(UserError, match="record 1: all 2 recorded leads are flat"):
        conform_signal(CONTRACT, two, sampling_rate=500, lead_mask=np.stack([np.ones(12), np.arange(12) < 2]) > 0)


def test_what_an_array_of_another_kind_says_of_itself_is_not_forgotten():
    """`np.asarray` drops a mask, and the names of a table's rows."""
    signal = ecg()[0]
    masked = np.ma.masked_where(signal > 0.5, signal)
    with pytest.raises(UserError, match=rf"masked array, {int((signal > 0.5).sum())} of its samples"):
        conform_signal(CONTRACT, masked, sampling_rate=500)
    whole = conform_signal(CONTRACT, np.ma.masked_array(signal), sampling_rate=500)
    assert np.array_equal(whole.signal[0], signal), "nothing is masked out"

    turned = list(reversed(STANDARD_LEADS))
    table = pandas.DataFrame(signal[::-1], index=turned)
    with pytest.raises(UserError, match="a table whose index are V6, V5"):
        conform_signal(CONTRACT, table, sampling_rate=500)
    for rows in (table.reindex(list(STANDARD_LEADS)), pandas.DataFrame(signal)):
        assert np.array_equal(conform_signal(CONTRACT, rows, sampling_rate=500).signal[0], signal)
    named = conform_signal(CONTRACT, table, sampling_rate=500, leads=turned)
    assert np.array_equal(named.signal[0], signal)


@pytest.mark.parametrize("rate", [None, "500", [500], 0, -1, float("nan")])
def test_what_is_no_rate_is_named(rate):
    with pytest.raises(UserError, match="is not a rate"):
        conform_signal(CONTRACT, ecg(), sampling_rate=rate)


@pytest.mark.parametrize("leads", [None, "I,II", 12])
def test_what_are_no_lead_names_is_named(leads):
    with pytest.raises(UserError, match=r"leads is .*(.|\n)*one name per row"):
        conform_signal(CONTRACT, ecg(), sampling_rate=500, leads=leads)


@pytest.mark.parametrize("rate", [1e-9, 9.9, 100_001.0, 1e9, float("inf"), 10**400])
def test_a_rate_that_no_ecg_has_is_refused_before_it_asks_for_memory(rate: float) -> None:
    with pytest.raises(UserError, match="is not between 10 and 100000 Hz"):
        conform_signal(CONTRACT, ecg(12), sampling_rate=rate, resample=True, crop=True)
