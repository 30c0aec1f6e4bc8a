"""Whatever a file claims, and whatever is in its place, is a signal or a rejection by name.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.io

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
    wrsamp,
)

NINES = "9" * 4300


@pytest.mark.parametrize(
    "header",
    [
        f"r 3 500 {NINES}\n" + "r.dat 16 200/mV 16 0 0 0 0 I\n" * 3,
        f"r {NINES} 500 5\n",
        f"r 1 {NINES} 5\nr.dat 16\n",
        f"r 1 500 10\nr.dat 16+{NINES} 200/mV\n",
        f"r 1 500 {NINES}\nr.dat 212 200/mV\n",
        f"r 1 500 10\nr.dat 16x{NINES} 200/mV\n",
        f"r 1 500 10\nr.dat 16:{NINES} 200/mV\n",
        f"r 1 500 10\nr.dat {NINES} 200/mV\n",
        f"r 1 500 10\nr.dat 16 200({NINES})/mV\n",
        f"r 1 500 10\nr.dat 16 {NINES}/mV 16 0 0 0 0 I\n",
        f"r 1 500 10\nr.dat 16 200/mV 12 {NINES}\n",
        f"r/{NINES} 1 500 10\ns 10\n",
        f"r/1 1 500 10\ns {NINES}\n",
        "r 1 500 999999999999\nr.dat 16 200/mV\n",
        "r/2 1 500 300000600\ns 600\n~ 300000000\n",
        "r 2 500 300000000\n~ 0 200/mV 16 0 0 0 0 I\n~ 0 200/mV 16 0 0 0 0 II\n",
        "r 1 500 300000000\nr.dat 516 200/mV\n",
        "r 100000 500 1\n" + "r.dat 16 200/mV\n" * 100000,
    ],
)
def test_numbers_without_end_and_claims_without_data_are_rejected_before_memory_is_taken(
    tmp_path: Path, header: str
) -> None:
    import tracemalloc

    (tmp_path / "r.dat").write_bytes(bytes(1200))
    write(tmp_path, COUNTS[:1], name="s", leads=("I",))
    (tmp_path / "r.hea").write_text(header)
    tracemalloc.start()
    message = refused(tmp_path / "r")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20 and len(message) < 700


def test_what_no_check_foresees_is_still_a_rejection(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "r.mat", {"val": COUNTS.astype("f8")}, format="4")
    head = bytearray((tmp_path / "r.mat").read_bytes()[:24])
    head[8:12] = (5_000_000).to_bytes(4, "little")  # columns
    write(tmp_path, bytes(head), "16+24", file="r.mat", line="r 3 500 10")
    os.truncate(tmp_path / "r.mat", 24 + 3 * 5_000_000 * 8)  # a hole, of which no more is read than a record takes
    assert "bad-format" in refused(tmp_path / "r")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", [".hea", ".dat"])
def test_a_pipe_in_the_place_of_a_file_is_rejected_at_once(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, COUNTS)
    path.with_suffix(suffix).unlink()
    os.mkfifo(path.with_suffix(suffix))
    assert "not a plain file" in refused(path)
    path.with_suffix(suffix).unlink()
    path.with_suffix(suffix).mkdir()
    assert "r" + suffix in refused(path)


@pytest.mark.parametrize("form", ["frames", "segments", "flac", "212", "level 4"])
def test_changed_bytes_in_any_form_give_a_signal_or_a_rejection_and_nothing_else(tmp_path: Path, form: str) -> None:
    if form == "segments":
        segment(tmp_path, "s1", COUNTS[:, :300])
        segment(tmp_path, "s2", COUNTS[::-1, 300:], leads=LEADS[::-1])
        path = record(tmp_path, "m/3 3 500 700", "s1 300", "~ 100", "s2 300")
    elif form == "frames":
        frames = np.concatenate([COUNTS[0].reshape(-1, 2), COUNTS[1, ::2, None], COUNTS[2, ::2, None]], axis=1)
        path = write(tmp_path, frames.T, ["16x2", "16:3", "16"], line="r 3 250 300")
    elif form == "level 4":
        scipy.io.savemat(tmp_path / "r.mat", {"val": COUNTS.astype("i4")}, format="4")
        path = write(tmp_path, (tmp_path / "r.mat").read_bytes(), "16+24", file="r.mat")
    else:
        path = wrsamp(tmp_path, "516" if form == "flac" else form, d_signal=COUNTS.T)
    read_wfdb(path)
    rng = random.Random(form)
    files = {file: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    reasons: list[str] = []
    for _ in range(150):
        file = rng.choice(list(files))
        data = bytearray(files[file])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(data), 400))
            data[at : at + rng.randint(0, 2)] = rng.choice(
                [b"", b"9" * 20, b"/", b"x0", b":7", b"\xff", b"~", b" ", b"\n"]
            )
        file.write_bytes(bytes(data))
        try:
            signal = read_wfdb(path)
            assert signal.counts.dtype == np.int16 and len(signal.counts) == len(signal.gain)
            assert np.isfinite(millivolts(signal)).all() and signal.counts.min() > -32768
        except RecordRejected as error:
            reasons.append(error.detail)
        file.write_bytes(files[file])
    assert len(reasons) > 20
    assert [reason for reason in reasons if "cannot be read: " in reason] == []  # all known by name, none by accident
