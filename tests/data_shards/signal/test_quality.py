"""Every flag is raised by the fault it is for, by nothing else, and the bits of the index stand for the same names for
ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.signal import quality
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

ALL = np.ones(12, dtype=bool)
GAIN = np.full(12, 200.0)


def test_a_clean_record_has_no_flag():
    assert quality.assess(ecg_counts(5000), GAIN, ALL) == {}


def test_a_flat_lead_is_flagged_and_masked():
    counts = ecg_counts(5000)
    counts[7] = 12
    counts[8, ::2] = 1
    counts[8, 1::2] = 0
    flags = quality.assess(counts, GAIN, ALL)
    assert flags == {"flat": ("V2", "V3")}
    assert list(np.flatnonzero(~quality.usable(ALL, flags))) == [7, 8]


def test_a_missing_lead_is_flagged_and_nothing_else_is_said_about_it():
    mask = ALL.copy()
    mask[5] = False
    counts = ecg_counts(5000)
    counts[5] = 0
    assert quality.assess(counts, GAIN, mask) == {"missing-lead": ("aVF",)}


@pytest.mark.parametrize("rate", [100.0, 400.0, 500.0])
@pytest.mark.parametrize("start", [0.0, 1.234, 9.6])
def test_a_dropout_is_a_constant_run_of_0_4_seconds(rate, start):
    counts = ecg_counts(round(10 * rate), rate=rate)
    first, run = round(start * rate), round(0.4 * rate)
    counts[2, first : first + run] = 3
    assert quality.assess(counts, GAIN, ALL, rate)["dropout"] == ("III",)
    counts[2, first + run // 2] = 4
    assert "dropout" not in quality.assess(counts, GAIN, ALL, rate)


def test_peaks_cut_off_at_one_value_are_clipped():
    counts = ecg_counts(5000)
    counts[9] = np.minimum(counts[9], 120)
    counts[10] = np.maximum(-counts[10], -120)
    assert quality.assess(counts, GAIN, ALL) == {"clipped": ("V4", "V5")}


def test_one_lead_stuck_at_the_rail_for_a_while_is_clipped():
    counts = ecg_counts(5000)
    counts[6, 1000:1150] = 32767
    assert quality.assess(counts, GAIN, ALL) == {"clipped": ("V1",)}


def test_one_rounded_peak_on_coarse_steps_is_not_clipped():
    counts = ecg_counts(5000)
    counts[4, 700:712] = counts[4].max() + 1
    assert quality.assess(counts, GAIN, ALL) == {}


@pytest.mark.parametrize("factor", [1000.0, 0.01])
def test_a_gain_a_thousand_times_off_is_remarked_and_left_alone(factor):
    counts, gain = ecg_counts(5000), GAIN * factor
    before = counts.copy(), gain.copy()
    assert quality.assess(counts, gain, ALL) == {"gain-suspect": STANDARD_LEADS}
    np.testing.assert_array_equal(counts, before[0])
    np.testing.assert_array_equal(gain, before[1])


def test_the_wrong_gain_of_a_single_lead_is_found_but_a_quiet_lead_is_none():
    gain = GAIN.copy()
    gain[1] *= 1000
    counts = ecg_counts(5000)
    counts[3] = np.random.default_rng(0).integers(-1, 2, 5000)  # a loose electrode: a few counts of noise
    assert quality.assess(counts, gain, ALL) == {"gain-suspect": ("II",)}


def test_a_converter_s_zero_that_was_not_subtracted_is_remarked_and_left_alone():
    counts = ecg_counts(5000)
    counts[3] += 2048  # the middle of 12 bits
    counts[7] -= (0.65 * GAIN[7]).astype(np.int16)  # the farthest of 1,543 real records without an offset: 0.645 mV
    counts[9] += (0.75 * GAIN[9]).astype(np.int16)
    before = counts.copy()
    assert quality.assess(counts, GAIN, ALL) == {"offset": ("aVR", "V4")}
    np.testing.assert_array_equal(counts, before)
    assert quality.assess(counts, GAIN, ALL & (np.arange(12) != 3)) == {"missing-lead": ("aVR",), "offset": ("V4",)}


@pytest.mark.parametrize("samples", [0, 1, 2, 5, 100])
def test_records_shorter_than_any_window_are_assessed(samples):
    """Five samples may be all of a QRS: their median is far from 0."""
    assert set(quality.assess(ecg_counts(samples), GAIN, ALL)) <= {"flat", "gain-suspect", "offset"}


def test_flag_bits_are_a_contract():
    assert quality.FLAGS[:6] == ("non-finite", "flat", "clipped", "dropout", "gain-suspect", "missing-lead")
    assert quality.bits(["flat", "missing-lead"]) == 0b100010
    with pytest.raises(KeyError):
        quality.bits(["wobbly"])


@given(st.sets(st.sampled_from(quality.FLAGS)))
def test_bits_and_names_are_inverse(flags):
    assert set(quality.names(quality.bits(flags))) == flags


def test_merged_flags_keep_every_lead_once_in_standard_order():
    merged = quality.merge({"flat": ("V1",), "clipped": ("aVR",)}, {"flat": ("II", "V1")}, {})
    assert merged == {"flat": ("II", "V1"), "clipped": ("aVR",)}
    assert list(merged) == ["flat", "clipped"]


def test_few_real_ptb_xl_records_are_flagged(real_data):
    source = open_source("ptb-xl", real_data / "ptb-xl")
    present = [entry for entry in list(source.entries())[:200] if (source.root / f"{entry.path}.hea").is_file()]
    flagged = [entry.key for entry in present if source.read(entry).quality]
    assert len(present) > 50
    assert len(flagged) <= len(present) * 0.05
