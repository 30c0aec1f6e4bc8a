"""A conformed record has the spec's rate and length, the same signal in mV, and says what it was."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.signal.resample import _at_times, polyphase
from tests.support.wfdb_files import ecg_counts

SPEC = SignalSpec(500.0, 10.0)


def record_of(counts: np.ndarray, rate: float = 500.0, **fields) -> EcgRecord:
    return EcgRecord("r", counts, np.full(12, 1000.0, dtype=np.float32), rate, **fields)


def smooth(rate: float, seconds: float, offset: float = 0.0) -> np.ndarray:
    """int16 (12, T): tones below 20 Hz that any rate above 100 Hz can carry."""
    time = np.arange(round(rate * seconds)) / rate
    tones = [800 * np.sin(2 * np.pi * (1.3 + k) * time + k) for k in range(12)]
    return np.rint(np.array(tones) + offset).astype(np.int16)


def test_a_record_that_conforms_is_returned_untouched():
    record = record_of(ecg_counts(5000))
    assert conform(record, SPEC) is record


def test_a_short_record_is_padded_at_the_end():
    counts = ecg_counts(1205)
    result = conform(record_of(counts, extra={"device": "x"}), SPEC)
    assert result.counts.shape == (12, 5000)
    assert result.valid_samples == 1205
    np.testing.assert_array_equal(result.counts[:, :1205], counts)
    assert not result.counts[:, 1205:].any()
    assert result.extra == {"device": "x", "original_sampling_rate": 500.0, "original_samples": 1205}


def test_a_long_record_keeps_its_first_seconds():
    counts = ecg_counts(30000)
    result = conform(record_of(counts), SPEC)
    np.testing.assert_array_equal(result.counts, counts[:, :5000])
    assert (result.valid_samples, result.extra["original_samples"]) == (5000, 30000)


def test_a_lead_that_is_flat_in_the_part_kept_is_masked():
    counts = ecg_counts(10000)
    counts[3, :5000] = 0
    result = conform(record_of(counts), SPEC)
    assert result.quality["flat"] == ("aVR",)
    assert list(np.flatnonzero(~result.lead_mask)) == [3]


@pytest.mark.parametrize(
    ("rate", "target"),
    [(100.0, 500.0), (400.0, 500.0), (1000.0, 500.0), (500.0, 100.0), (257.0, 500.0), (500.0, 250.0)],
)
@pytest.mark.parametrize("seconds", [4.0, 10.0, 17.0])
def test_resampling_keeps_the_waveform(rate, target, seconds):
    result = conform(record_of(smooth(rate, seconds), rate), SignalSpec(target, 10.0))
    assert result.samples == round(10 * target)
    assert abs(result.valid_samples - round(min(seconds, 10.0) * target)) <= 1
    inner = slice(round(0.1 * target), result.valid_samples - round(0.1 * target))
    expected = smooth(target, 17.0)[:, : result.samples]
    assert np.abs(result.counts[:, inner].astype(float) - expected[:, inner]).max() < 12  # of 800
    assert result.sampling_rate == target
    assert result.extra["original_sampling_rate"] == rate


def test_an_offset_makes_no_transient_at_the_edges():
    result = conform(record_of(np.full((12, 1000), 5000, dtype=np.int16), 100.0), SPEC)
    assert np.abs(result.counts.astype(int) - 5000).max() <= 1


def test_peaks_that_leave_16_bits_get_a_lower_gain_and_keep_their_height():
    square = np.where(np.arange(1000) // 10 % 2, 32767, -32767).astype(np.int16)
    counts = ecg_counts(1000, rate=100.0)
    counts[5] = square
    result = conform(record_of(counts, 100.0), SPEC)
    exact = resample_poly(square.astype(float), 5, 1, padtype="line")
    assert np.abs(exact).max() > 34000  # the filter swings over at every edge
    assert result.gain.tolist() == [1000.0] * 5 + [500.0] + [1000.0] * 6
    assert np.abs(result.millivolts()[5] - exact / 1000).max() <= 1.1e-3  # half a step, and the filter in 32 bits
    assert "clipped" not in result.quality


@pytest.mark.parametrize("rate", [499.98, 500.01, 499.9995, 500.04])
def test_a_rate_that_misses_the_target_by_less_than_half_a_sample_keeps_its_samples(rate: float):
    counts = ecg_counts(5000)
    result = conform(record_of(counts, rate), SPEC)
    np.testing.assert_array_equal(result.counts, counts)
    assert (result.sampling_rate, result.valid_samples) == (500.0, 5000)
    assert result.extra == {"original_sampling_rate": rate, "original_samples": 5000}
    padded = conform(record_of(counts[:, :400], rate), SPEC)
    assert padded.valid_samples == 400 and not padded.counts[:, 400:].any()


@pytest.mark.parametrize(("rate", "seconds"), [(499.9, 10), (500.2, 10), (499.98, 60), (500.004, 150)])
def test_a_rate_that_drifts_away_is_resampled_by_a_fraction_that_holds_to_the_end(rate: float, seconds: int):
    time = np.arange(round(rate * seconds)) / rate
    tone = np.rint(20000 * np.sin(2 * np.pi * 7 * time)).astype(np.int16)
    result = conform(record_of(np.tile(tone, (12, 1)), rate), SignalSpec(500.0, seconds))
    expected = 20000 * np.sin(2 * np.pi * 7 * np.arange(500 * seconds) / 500)
    inner = slice(50, result.valid_samples - 50)
    assert np.abs(result.counts[0, inner] - expected[inner]).max() < 200  # a tenth of a sample is 176
    assert result.extra["original_sampling_rate"] == rate


@pytest.mark.parametrize("ratio", [500 / 499.9, 500 / 360, 250 / 1000])
def test_both_ways_to_resample_give_the_same(ratio: float):
    signal = np.cumsum(np.random.default_rng(0).normal(0, 20, (2, 3000)), axis=1) + 5000
    near = Fraction(ratio).limit_denominator(10_000)
    by_fraction = polyphase(signal, near.numerator, near.denominator)
    at_times = _at_times(signal, ratio)
    assert at_times.shape == by_fraction.shape and np.abs(at_times - by_fraction).max() < 2  # of 20 from step to step


@pytest.mark.parametrize("samples", [1, 2, 7, 3000])
@pytest.mark.parametrize(("rate", "target"), [(10.0, 1000.0), (100_000.0, 50.0), (1 / 3 + 10, 499.97), (977.7777, 1.0)])
def test_rates_of_any_ratio_and_records_of_any_length_conform(samples: int, rate: float, target: float):
    counts = np.full((12, samples), 1234, dtype=np.int16)
    result = conform(record_of(counts, rate), SignalSpec(target, 2.0))
    assert result.samples == round(2 * target) and result.valid_samples >= 1
    assert np.abs(result.counts[:, : result.valid_samples].astype(int) - 1234).max() <= 1


def test_padding_that_a_record_brings_along_is_not_resampled():
    counts = np.zeros((12, 1000), dtype=np.int16)
    counts[:, :300] = smooth(100.0, 3.0, offset=3000)
    result = conform(record_of(counts, 100.0, valid_samples=300), SPEC)
    assert (result.valid_samples, result.extra["original_samples"]) == (1500, 300)
    assert result.counts[:, 1490:1500].min() > 1500
    assert not result.counts[:, 1500:].any()


def test_masked_leads_stay_zero():
    mask = np.ones(12, dtype=bool)
    mask[2] = False
    counts = smooth(100.0, 10.0)
    counts[2] = 7
    assert not conform(record_of(counts, 100.0, lead_mask=mask), SPEC).counts[2].any()
