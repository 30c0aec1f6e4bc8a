"""Frames and skews: each sample at its rate and its time, a missing one missing.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from tests.support.declared_records import (
    COUNTS,
    write,
)
from tests.support.wfdb_files import ecg_counts


@pytest.mark.parametrize(("rate", "per_frame"), [(50, 10), (1, 500), (62.4725, 4)])
def test_a_record_of_frames_is_read_at_the_rate_of_its_samples(tmp_path: Path, rate: float, per_frame: int) -> None:
    signal = ecg_counts(1000, leads=3, gain=1000)
    frames = np.concatenate([lead.reshape(-1, per_frame) for lead in signal], axis=1)
    path = write(tmp_path, frames.T, f"16x{per_frame}", line=f"r 3 {rate} {1000 // per_frame}")
    read = read_wfdb(path)
    np.testing.assert_array_equal(read.counts, signal)
    assert read.sampling_rate == pytest.approx(rate * per_frame)


def test_a_missing_sample_in_a_frame_is_flagged_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    signal = ecg_counts(1000, leads=3, gain=1000)
    signal[1, 301] = -32768
    frames = np.concatenate([lead.reshape(-1, 2) for lead in signal], axis=1)
    read = read_wfdb(write(tmp_path, frames.T, "16x2", line="r 3 250 500"))
    assert read.flags == {"non-finite": (1,)} and read.counts[1, 301] == 0
    signal[1, 301] = 0
    np.testing.assert_array_equal(read.counts, signal)


def test_leads_of_fewer_samples_per_frame_are_brought_to_the_rate_of_the_others(tmp_path: Path) -> None:
    time = np.arange(2000) / 500
    fast = np.rint(1000 * np.sin(2 * np.pi * 40 * time)).astype(np.int64)  # an average of two would lose 3 %
    slow = np.rint(800 * np.sin(2 * np.pi * 5 * time + 1) + 3000).astype(np.int64)
    gap = slow[::2].copy()
    gap[400] = -32768
    pressure = np.arange(1000)
    frames = np.concatenate([fast.reshape(-1, 2), gap[:, None], pressure[:, None]], axis=1)
    read = read_wfdb(
        write(
            tmp_path, frames.T, ["16x2", "16", "16"], line="r 3 250 1000", leads=("II", "V1", "ABP"),
            gain=["1000(0)/mV", "1000(0)/mV", "1/mmHg"],
        )
    )  # fmt: skip
    assert read.sampling_rate == 500 and read.notes == {"raised_to_the_rate_of_other_leads": ["V1"]}
    np.testing.assert_array_equal(read.counts[0], fast)
    assert read.flags == {"non-finite": (1,)} and read.counts[1, 800:802].tolist() == [0, 0]
    inner = np.r_[50:800, 802:1950]
    assert np.abs(read.counts[1, inner] - slow[inner]).max() <= 4  # of 800, and of 3800 beside the gap
    np.testing.assert_array_equal(read.counts[2], np.repeat(pressure, 2))


def test_a_slow_channel_that_is_no_lead_does_not_change_the_leads(tmp_path: Path) -> None:
    signal = ecg_counts(1000, leads=2, gain=1000)
    frames = np.concatenate([signal[0].reshape(-1, 4), signal[1].reshape(-1, 4), np.zeros((250, 1), int)], axis=1)
    path = write(tmp_path, frames.T, ["16x4", "16x4", "16"], line="r 3 125 250", leads=("I", "II", "resp"))
    np.testing.assert_array_equal(read_wfdb(path).counts[:2], signal)


def test_two_skews_are_two_shifts_and_what_they_push_out_has_no_value(tmp_path: Path) -> None:
    late = [np.concatenate([np.full(skew, 9), row])[:600] for row, skew in zip(COUNTS, (0, 3, 5), strict=True)]
    read = read_wfdb(write(tmp_path, np.array(late), ["16", "16:3", "16:5"]))
    for lead, skew in enumerate((0, 3, 5)):
        np.testing.assert_array_equal(read.counts[lead, : 600 - skew], COUNTS[lead, : 600 - skew])
        assert not read.counts[lead, 600 - skew :].any()
    assert read.flags == {"non-finite": (1, 2)}
    whole = [
        np.concatenate([np.full(skew, 9), row, np.zeros(5 - skew, int)])
        for row, skew in zip(COUNTS, (0, 3, 5), strict=True)
    ]
    longer = read_wfdb(write(tmp_path, np.array(whole), ["16", "16:3", "16:5"], line="r 3 500 600"))
    np.testing.assert_array_equal(longer.counts, COUNTS)  # the file holds what the skew asks for
    assert not longer.flags
