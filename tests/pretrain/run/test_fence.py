"""One worker group writes into a run directory; one that was given up and lives on cannot touch its successor's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import ATTEMPT

WRITER = """
import sys, time
from pathlib import Path
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.retention import prune

run_dir, name, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fence.take_start(run_dir)
files.sweep(run_dir)
with TraceWriter(run_dir, 0) as trace:
    for step in range(first, last + 1):
        trace.write(step, {"by": name})
        folder = files.temporary_path(run_dir, step)
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(name * 50)
        files.commit(run_dir, step, files.seal(folder, files.files_below(folder)), {"by": name})
        prune(run_dir, 3)
        time.sleep(0.01)
"""
"""A group at work with the product's own writers: it takes the run over, then trace, checkpoint and prune per step."""


@pytest.fixture(autouse=True)
def _nothing_is_held() -> Iterator[None]:
    fence._held.clear()
    yield
    fence._held.clear()


def at_work(run_dir: Path, name: str, first: int, last: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(run_dir), name, str(first), str(last)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def until(done, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_group_that_was_stopped_and_continued_leaves_its_successors_run_alone(tmp_path: Path) -> None:
    old = at_work(tmp_path, "old", 1, 40_000)
    try:
        until((tmp_path / "checkpoints" / "step-00000005").is_dir, old)
        os.kill(old.pid, signal.SIGSTOP)
        new = at_work(tmp_path, "new", 1, 8)
        _, said = new.communicate(timeout=60)
        assert new.returncode == 0, said
        before = content(tmp_path)
        os.kill(old.pid, signal.SIGCONT)
        _, said = old.communicate(timeout=60)
    finally:
        old.kill()
    assert old.returncode != 0 and "has taken over" in said and f"process {new.pid} on" in said
    assert content(tmp_path) == before
    trace = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["by"]) for line in trace] == [(step, "new") for step in range(1, 9)]


def test_a_group_that_runs_beside_its_successor_ends_and_the_successor_does_not(tmp_path: Path) -> None:
    old = at_work(tmp_path, "old", 1, 40_000)
    try:
        until((tmp_path / "checkpoints" / "step-00000005").is_dir, old)
        new = at_work(tmp_path, "new", 50_001, 50_020)
        _, told = old.communicate(timeout=60)
        assert old.returncode != 0 and "FencedOutError" in told
        _, said = new.communicate(timeout=60)
        assert new.returncode == 0, said
    finally:
        old.kill()
        new.kill()
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == [f"step-{step:08d}" for step in (50_018, 50_019, 50_020)]
    assert (tmp_path / "checkpoints" / "step-00050020" / "trainer_state.json").read_text() == "new" * 50
    trace = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["by"] for line in trace] == ["new"] * 20


def test_every_writer_of_a_run_asks_who_holds_it(tmp_path: Path) -> None:
    from cardialign.cluster.runs.failure import write_failure
    from cardialign.pretrain.run.trace import TraceWriter
    from cardialign.pretrain.training.checkpoints import files
    from cardialign.pretrain.training.checkpoints.retention import prune

    fence.take_start(tmp_path)
    trace = TraceWriter(tmp_path, 0)
    folder = files.temporary_path(tmp_path, 1)
    folder.mkdir(parents=True)
    entries = files.seal(folder, [])
    (tmp_path / ATTEMPT).write_text(json.dumps({"start": "another", "group": 1}))
    (tmp_path / "checkpoints" / "step-00000007").mkdir()
    (tmp_path / "checkpoints" / ".tmp-theirs").mkdir()
    writers = {
        "trace": lambda: trace.write(1, {}),
        "new trace": lambda: TraceWriter(tmp_path, 0),
        "commit": lambda: files.commit(tmp_path, 1, entries, {}),
        "sweep": lambda: files.sweep(tmp_path),
        "prune": lambda: (files.committed_path(tmp_path, 8).mkdir(), prune(tmp_path, 1)),
        "quarantine": lambda: files.quarantine(tmp_path / "checkpoints" / "step-00000007", "damaged"),
    }
    for name, write in writers.items():
        with pytest.raises(fence.FencedOutError):
            write()
            pytest.fail(name)
    write_failure(tmp_path, UserError("the old one's trouble"), 0)
    assert not (tmp_path / "failure.json").exists()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        [".tmp-theirs", folder.name, "step-00000007", "step-00000008"]
    )


def test_the_younger_group_of_a_start_fences_the_older_one_and_not_the_driver(tmp_path: Path) -> None:
    start = fence.take_start(tmp_path)
    first, second = fence.Mark(start.start, 1), fence.Mark(start.start, 2)
    fence.take_group(tmp_path, second)
    with pytest.raises(fence.FencedOutError):
        fence.take_group(tmp_path, first)
    fence.hold(tmp_path, second)
    fence.check(tmp_path)
    fence._held[tmp_path] = first
    assert fence.fenced_out(tmp_path)
    fence._held[tmp_path] = start
    assert not fence.fenced_out(tmp_path), "its own groups do not fence the driver out"
    fence.take_start(tmp_path)
    fence._held[tmp_path] = start
    assert fence.fenced_out(tmp_path), "another driver does"


def test_a_host_that_does_not_see_the_run_directory_is_named_with_the_folder(tmp_path: Path) -> None:
    start = fence.take_start(tmp_path / "here")
    group = fence.Mark(start.start, 1)
    with pytest.raises(UserError, match=rf"host {os.uname().nodename} does not see .*{tmp_path}/there.*no such folder"):
        fence.take_group(tmp_path / "there", group, seconds=0.1)
    (tmp_path / "another").mkdir()
    with pytest.raises(UserError, match="is not this one"):
        fence.hold(tmp_path / "another", group, seconds=0.1)
    fence.take_start(tmp_path / "another")
    with pytest.raises(UserError, match="belongs to another start"):
        fence.hold(tmp_path / "another", group, seconds=0.1)
    assert not (tmp_path / "there").exists(), "nothing is made where the run is not"


def test_a_run_directory_that_was_removed_under_a_group_is_not_made_again(tmp_path: Path) -> None:
    fence.take_start(tmp_path)
    (tmp_path / ATTEMPT).unlink()
    with pytest.raises(fence.FencedOutError, match="removed or replaced"):
        fence.check(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"start": "x"}', '{"start": "x", "group": Infinity}', "\ud800"])
def test_a_mark_that_cannot_be_read_is_nobodys(tmp_path: Path, text: str) -> None:
    fence.take_start(tmp_path)
    (tmp_path / ATTEMPT).write_text(text, errors="surrogatepass")
    with pytest.raises(fence.FencedOutError):
        fence.check(tmp_path)


def test_who_holds_nothing_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / ATTEMPT).write_text(json.dumps({"start": "somebody", "group": 3}))
    fence.check(tmp_path)
    assert fence.label(tmp_path) == ""
