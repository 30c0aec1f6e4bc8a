"""Segments: each by its own unit, gain and order of leads; one that does not fit the record is named.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from tests.support.declared_records import (
    COUNTS,
    LEADS,
    millivolts,
    record,
    refused,
    segment,
    write,
)


def test_each_segment_has_its_own_unit_gain_baseline_and_order_of_leads(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :200], gain="1000(0)/mV")
    segment(tmp_path, "s2", COUNTS[::-1, 200:300] + 50, gain="1(50)/uV", leads=LEADS[::-1])
    segment(tmp_path, "s3", 2 * COUNTS[:, 300:], gain="2000000(0)/V", leads=("i", "lead II", "v1"))
    read = read_wfdb(record(tmp_path, "m/3 3 500 600", "s1 200", "s2 100", "s3 300"))
    np.testing.assert_allclose(millivolts(read), COUNTS / 1000, atol=1e-9)
    assert read.lead_names == LEADS and not read.flags and read.comments == ("Age: 60",)


def test_a_variable_layout_has_leads_that_come_and_go_and_stretches_without_a_recording(tmp_path: Path) -> None:
    (tmp_path / "layout.hea").write_text("layout 3 500 0\n" + "".join(f"~ 0 1/NU 0 0 0 0 0 {lead}\n" for lead in LEADS))
    segment(tmp_path, "s1", COUNTS[1:, :200], leads=LEADS[1:])
    segment(tmp_path, "s2", COUNTS[[2, 0], 300:], leads=("V1", "I"))
    path = record(tmp_path, "m/4 3 500 600", "layout 0", "s1 200", "~ 100", "s2 300")
    read = read_wfdb(path)
    expected = COUNTS.copy()
    expected[0, :300], expected[1, 200:], expected[2, 200:300] = 0, 0, 0
    np.testing.assert_array_equal(read.counts, expected)
    assert read.flags == {"non-finite": (0, 1, 2)} and read.lead_names == LEADS


def test_a_coarse_first_segment_does_not_make_the_others_coarse(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300] // 100, gain="10(0)/mV")
    segment(tmp_path, "s2", COUNTS[:, 300:], gain="1000(0)/mV")
    segment(tmp_path, "s3", COUNTS[:, 300:], gain="333.3(0)/mV")
    read = read_wfdb(record(tmp_path, "m/3 3 500 900", "s1 300", "s2 300", "s3 300"))
    right = np.concatenate([COUNTS[:, :300] // 100 / 10, COUNTS[:, 300:] / 1000, COUNTS[:, 300:] / 333.3], axis=1)
    assert np.abs(millivolts(read) - right).max() <= 5e-4 + 1e-9


def test_segments_of_several_samples_per_frame_are_joined_at_the_highest_rate(tmp_path: Path) -> None:
    halves = np.concatenate([lead[:300].reshape(-1, 2) for lead in COUNTS], axis=1)
    write(tmp_path, halves.T, "16x2", name="s1", line="s1 3 250 150")
    write(
        tmp_path,
        np.concatenate([lead[300:].reshape(-1, 2) for lead in COUNTS], axis=1).T,
        "16x2",
        name="s2",
        line="s2 3 250 150",
    )
    read = read_wfdb(record(tmp_path, "m/2 3 250 300", "s1 150", "s2 150"))
    np.testing.assert_array_equal(read.counts, COUNTS)
    assert read.sampling_rate == 500


@pytest.mark.parametrize(
    ("second", "line", "says"),
    [
        ({"rate": "360"}, "m/2 3 500 600", "s2.hea: a segment at 360 Hz of a record at 500 Hz"),
        ({}, "m/2 3 500 601", "announces 601 samples, its segments have 600"),
        ({}, "m/2 4 500 600", "4 signals are announced, .*s1.hea has 3"),
        ({"leads": ("I", "II", "V2")}, "m/2 3 500 600", "s2.hea: the segment's lead 'V2' is not one lead"),
        ({"leads": ("I", "II", "II")}, "m/2 3 500 600", "s2.hea: the segment's lead 'II' is not one lead"),
        ({"gain": "1000/mmHg"}, "m/2 3 500 600", "bad-gain.*s2.hea: lead 'I' has the unit 'mmHg'"),
    ],
    ids=["rate", "total", "signals", "unknown lead", "lead twice", "unit"],
)  # fmt: skip
def test_a_segment_that_does_not_fit_the_record_is_named(tmp_path: Path, second: dict, line: str, says: str) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300])
    segment(tmp_path, "s2", COUNTS[:, 300:], **second)
    record(tmp_path, line, "s1 300", "s2 300")
    with pytest.raises(RecordRejected, match=says):
        read_wfdb(tmp_path / "m")


def test_a_segment_of_another_length_of_fewer_leads_or_with_segments_of_its_own_is_named(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300])
    segment(tmp_path, "s2", COUNTS[:2, 300:], leads=LEADS[:2])
    assert "a segment of 300 samples, of which the record says 299" in refused(
        record(tmp_path, "m/2 3 500 599", "s1 300", "s2 299")
    )
    assert "s2.hea: a segment of the leads I, II of I, II, V1" in refused(
        record(tmp_path, "m/2 3 500 600", "s1 300", "s2 300")
    )
    record(tmp_path, "n/1 3 500 300", "s1 300", name="n")
    assert "'n' has segments of its own" in refused(record(tmp_path, "m/2 3 500 600", "s1 300", "n 300"))
    assert "none.hea: no such header file" in refused(record(tmp_path, "m/2 3 500 600", "s1 300", "none 300"))
