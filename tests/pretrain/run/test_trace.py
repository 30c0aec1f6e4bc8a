"""The loss trace survives crashes and resumes."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from cardialign.pretrain.run.trace import TraceWriter, read_trace


def test_lines_come_back_and_a_torn_line_is_dropped(tmp_path):
    with TraceWriter(tmp_path, 0) as trace:
        for step in (1, 2):
            trace.write(step, {"loss": step / 2, "digest": "ab"})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert read_trace(tmp_path) == [{"step": 1, "loss": 0.5, "digest": "ab"}, {"step": 2, "loss": 1.0, "digest": "ab"}]


def test_resuming_drops_the_steps_that_are_run_again(tmp_path):
    with TraceWriter(tmp_path, 0) as trace:
        for step in range(1, 6):
            trace.write(step, {"loss": 1.0})
    with TraceWriter(tmp_path, 3) as trace:
        assert [line["step"] for line in read_trace(tmp_path)] == [1, 2, 3]
        trace.write(4, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in read_trace(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_no_trace_is_an_empty_one(tmp_path):
    assert read_trace(tmp_path) == []


def losses(run_dir):
    return {line["step"]: line["loss"] for line in read_trace(run_dir)}


@pytest.mark.parametrize(
    "junk", [b"\0" * 100, b"\xff\xfe junk\n", b"[" * 100_000 + b"\n", b'{"step": []}\n', b'{"step": "2"}\n', b"5\n\n"]
)
def test_bytes_that_are_no_lines_cost_no_step_and_are_kept_and_named(tmp_path, caplog, junk):
    with TraceWriter(tmp_path, 0) as trace:
        for step in (1, 2, 3):
            trace.write(step, {"loss": step / 2})
    path = tmp_path / "metrics.jsonl"
    spoilt = junk + path.read_bytes()
    path.write_bytes(spoilt)
    with TraceWriter(tmp_path, 3) as trace:
        trace.write(4, {"loss": 2.0})
    assert losses(tmp_path) == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}
    if junk.strip(b"\0"):
        assert (tmp_path / "metrics.jsonl.unreadable").read_bytes() == spoilt
        assert "unreadable_lines=1" in caplog.text
    assert "missing_steps" not in caplog.text


def test_a_step_that_is_lost_is_said(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo\xff\n{"step": 3, "loss": 1.0}\n'
    )
    TraceWriter(tmp_path, 3).__exit__(None, None, None)
    assert "missing_steps=1 first=2" in caplog.text


def test_a_trace_that_is_gone_is_said(tmp_path, caplog):
    with TraceWriter(tmp_path, 3) as trace:
        trace.write(4, {"loss": 2.0})
    assert "missing_steps=3 first=1" in caplog.text
    caplog.clear()
    (tmp_path / "new").mkdir()
    with TraceWriter(tmp_path / "new", 0):
        pass
    assert "missing_steps" not in caplog.text


def test_a_byte_order_mark_costs_no_step(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'\xef\xbb\xbf{"step": 1, "loss": 1.0}\r\n{"step": 2, "loss": 0.5}\r\n')
    TraceWriter(tmp_path, 2).__exit__(None, None, None)
    assert losses(tmp_path) == {1: 1.0, 2: 0.5} and "unreadable" not in caplog.text


def write_on_a_full_disk(folder: Path) -> dict[str, Any]:
    """In a process of its own, whose files may not grow beyond 60 bytes until the limit is lifted."""
    trace = TraceWriter(folder, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trace.write(1, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    trace.write(2, {"loss": 2.0})
    trace.write(3, {"loss": 3.0})
    full, problem = (folder / "metrics.jsonl").read_bytes(), trace.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    trace.write(4, {"loss": 4.0})
    return {"full": full, "problem": problem, "settled": trace.flush()}


def test_a_full_disk_leaves_no_half_line_and_what_waits_is_written_when_there_is_room(tmp_path):
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        found = other.submit(write_on_a_full_disk, tmp_path).result(60)
    assert found["full"].endswith(b"\n") and set(map(len, found["full"].splitlines())) == {24}
    assert "File too large" in found["problem"] and found["settled"] is None
    assert losses(tmp_path) == {step: float(step) for step in range(1, 5)}
