"""Checksums and first values are compared in every form.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.reading.wfdb.reader import WfdbSignal, read_wfdb
from tests.support.declared_records import (
    COUNTS,
    LEADS,
    record,
    refused,
    segment,
    write,
    wrsamp,
)


@pytest.mark.parametrize("storage", ["16", "24", "32", "80", "212", "516"])
def test_checksums_of_every_format_pass_as_written_and_flag_a_changed_lead(tmp_path: Path, storage: str) -> None:
    counts = COUNTS // (20 if storage == "80" else 1)
    path = wrsamp(tmp_path, storage, d_signal=counts.T)
    assert not read_wfdb(path).flags
    other = counts.copy()
    other[1, 300] += 4
    header = (tmp_path / "r.hea").read_bytes()
    wrsamp(tmp_path, storage, d_signal=other.T)
    (tmp_path / "r.hea").write_bytes(header)
    assert read_wfdb(path).flags == {"checksum": (1,)}


@pytest.mark.parametrize("form", ["frames", "skew", "segments", "differences"])
def test_checksums_are_compared_in_every_form(tmp_path: Path, form: str) -> None:
    def made(change: int) -> WfdbSignal:
        counts = COUNTS // 8
        sums = [(int(row[0]), int(row.sum()) + change * (k == 2)) for k, row in enumerate(counts)]
        if form == "frames":
            frames = np.concatenate([lead.reshape(-1, 2) for lead in counts], axis=1)
            return read_wfdb(write(tmp_path, frames.T, "16x2", line="r 3 250 300", checks=sums))
        if form == "skew":
            return read_wfdb(write(tmp_path, counts, ["16", "16:2", "16"], checks=sums))
        if form == "differences":
            steps = np.diff(counts, axis=1, prepend=counts[:, :1])
            assert np.abs(steps).max() < 128
            return read_wfdb(write(tmp_path, steps.T.astype("i1").tobytes(), "8", checks=sums))
        segment(tmp_path, "s1", counts, checks=sums)
        segment(
            tmp_path,
            "s2",
            counts[::-1],
            leads=LEADS[::-1],
            checks=[(int(row[0]), int(row.sum())) for row in counts[::-1]],
        )
        return read_wfdb(record(tmp_path, "m/2 3 500 1200", "s1 600", "s2 600"))

    assert "checksum" not in made(0).flags
    assert made(1).flags["checksum"] == (2,)


def test_first_values_tell_a_file_of_another_record_where_there_are_no_checksums(tmp_path: Path) -> None:
    firsts = [(int(row[0]), 0) for row in COUNTS]
    assert not read_wfdb(write(tmp_path, COUNTS, checks=firsts)).flags
    wrong = [(first + 1, 0) for first, _ in firsts]
    assert read_wfdb(write(tmp_path, COUNTS, checks=wrong)).flags == {"checksum": (0, 1, 2)}
    longer = np.concatenate([COUNTS[:, ::-1], COUNTS[:, :100]], axis=1)
    assert "differ (lead" in refused(write(tmp_path, longer, line="r 3 500 600", checks=firsts))
