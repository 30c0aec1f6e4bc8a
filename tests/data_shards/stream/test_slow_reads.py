"""A read that hangs is reported while it hangs, with shard, rank and seconds."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from cardialign.data_shards.shard_set.cache import ShardCache, locked
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream import decoder
from cardialign.data_shards.stream.slow_reads import SlowRead, SlowReadWatch
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from tests.data_shards.stream.test_stream import order_of, stream_threads

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shards(set_copy: Path, tmp_path: Path) -> ShardSet:
    """A set behind a URL, of which nothing is fetched yet."""
    return ShardSet.open(f"file://{set_copy}", ShardCache(tmp_path / "cache", 10**9))


def held(shards: ShardSet, number: int) -> AbstractContextManager[None]:
    """Hold a shard as a process does that fetches it: who wants to read it waits until it is let go."""
    return locked(shards.path / f".{shards.shard_names[number]}.lock")


def test_a_hanging_shard_is_named_while_the_consumer_waits(shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []
    with (
        caplog.at_level(logging.WARNING),
        ShardStream(
            shards,
            order_of(shards),
            rank=1,
            world_size=2,
            stop_step=8,
            read_ahead=ReadAhead(slow_read_seconds=0.05),
        ) as stream,
    ):
        consumer = threading.Thread(target=lambda: taken.extend(batch.step for batch in stream))
        with held(shards, 1):
            consumer.start()
            deadline = time.monotonic() + 20
            while stream.slow_reads == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert consumer.is_alive() and stream.slow_reads >= 1
            line = next(record.getMessage() for record in caplog.records if "slow-read" in record.getMessage())
        consumer.join(20)
    assert "shard=shard-000001.tar rank=1 seconds=0." in line and "state=waiting" in line
    assert any("state=done" in record.getMessage() for record in caplog.records)
    assert taken == list(range(8)), "storage that comes back loses nothing"
    assert stream_threads() == []


def test_only_reads_beyond_the_threshold_are_reported_and_repeats_are_rare() -> None:
    reports: list[SlowRead] = []
    watch = SlowReadWatch(0.04, rank=3, report=reports.append)
    for _ in range(20):
        watch.begin("quick.tar")
        watch.end()
    watch.begin("slow.tar")
    deadline = time.monotonic() + 20
    while len(reports) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    watch.end()
    watch.close()
    assert {report.shard for report in reports} == {"slow.tar"} and {report.rank for report in reports} == {3}
    assert {report.state for report in reports[:-1]} == {"waiting"} and reports[-1].state == "done" and watch.count == 1
    seconds = [report.seconds for report in reports]
    assert seconds[0] >= 0.04 and all(later >= 1.9 * earlier for earlier, later in pairwise(seconds[:-1]))


def test_a_stream_with_a_hanging_read_closes_in_bounded_time_and_frees_who_waits_for_it(
    shards: ShardSet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "CLOSE_SECONDS", 0.1)
    stream = ShardStream(shards, order_of(shards), read_ahead=ReadAhead(slow_read_seconds=0.05))
    outcome: list[BaseException] = []

    def consume() -> None:
        try:
            list(stream)
        except BaseException as error:
            outcome.append(error)

    with held(shards, 1):
        consumer = threading.Thread(target=consume)
        consumer.start()
        deadline = time.monotonic() + 20
        while stream.slow_reads < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            stream.close()
        assert time.monotonic() - started < 5 and len(stream_threads()) == 2, "both threads still hang"
        consumer.join(5)
        assert not consumer.is_alive() and isinstance(outcome[0], CancelledError)
        left = [each.getMessage() for each in caplog.records if "state=left" in each.getMessage()]
        assert left and all("shard=shard-000001.tar rank=0" in line for line in left)
    while stream_threads() and time.monotonic() < deadline:  # a mount that comes back ends them
        time.sleep(0.01)
    assert stream_threads() == []


EXIT_WITH_A_HANGING_READ = """
import faulthandler, os, signal, sys, threading, time
faulthandler.dump_traceback_later(50, exit=True)  # where it stands, should it not end
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is born deaf to it
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream import decoder
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from tests.data_shards.stream.test_stream import order_of

def interrupt_when_it_hangs():
    while stream.slow_reads == 0:
        time.sleep(0.01)
    while True:  # Python loses an interrupt that meets a finaliser; whoever waits presses the keys again
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

decoder.CLOSE_SECONDS = 0.1
shards = ShardSet.open(sys.argv[1])
unclosed = ShardStream(shards, order_of(shards))
with ShardStream(shards, order_of(shards), read_ahead=ReadAhead(slow_read_seconds=0.05)) as stream:
    threading.Thread(target=interrupt_when_it_hangs, daemon=True).start()
    try:
        list(stream)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_a_process_ends_although_a_read_hangs(set_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    url = f"file://{set_copy}"
    with held(ShardSet.open(url), 1):
        ended = subprocess.run(
            [sys.executable, "-c", EXIT_WITH_A_HANGING_READ, url], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
