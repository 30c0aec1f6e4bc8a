"""A read that hangs is reported while it hangs, with shard, rank and seconds."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from itertools import pairwise
from pathlib import Path

import pytest

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream import decoder
from cardialign.data_shards.stream.slow_reads import SlowRead, SlowReadWatch
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from tests.data_shards.stream.test_stream import order_of, stream_threads

ROOT = Path(__file__).parents[3]


def hang(shards: ShardSet, number: int) -> Path:
    """Put a pipe in the place of a shard: opening it for reading blocks until somebody opens it for writing."""
    pipe = shards.path / shards.shard_names[number]
    pipe.unlink()
    os.mkfifo(pipe)
    return pipe


def release(pipe: Path) -> None:
    """Let every reader that waits for the pipe go on."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        time.sleep(0.01)  # no reader waits at this moment


def test_a_hanging_shard_is_named_while_the_consumer_waits(set_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet.open(set_copy)
    pipe = hang(shards, 1)
    caught: list[DataError] = []

    def consume(stream: ShardStream) -> None:
        try:
            list(stream)
        except DataError as error:
            caught.append(error)

    with (
        caplog.at_level(logging.WARNING),
        ShardStream(
            shards, order_of(shards), rank=1, world_size=2, read_ahead=ReadAhead(slow_read_seconds=0.05)
        ) as stream,
    ):
        consumer = threading.Thread(target=consume, args=(stream,))
        consumer.start()
        deadline = time.monotonic() + 20
        while stream.slow_reads == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert consumer.is_alive() and stream.slow_reads >= 1
        line = next(record.getMessage() for record in caplog.records if "slow-read" in record.getMessage())
        while consumer.is_alive() and time.monotonic() < deadline:
            release(pipe)
        consumer.join(10)
    assert "shard=shard-000001.tar rank=1 seconds=0." in line and "state=waiting" in line
    assert any("state=done" in record.getMessage() for record in caplog.records)
    assert caught and "shard-000001.tar cannot be read" in str(caught[0])
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
    set_copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "CLOSE_SECONDS", 0.1)
    shards = ShardSet.open(set_copy)
    pipe = hang(shards, 1)
    stream = ShardStream(shards, order_of(shards), read_ahead=ReadAhead(slow_read_seconds=0.05))
    outcome: list[BaseException] = []

    def consume() -> None:
        try:
            list(stream)
        except BaseException as error:
            outcome.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    deadline = time.monotonic() + 20
    while stream.slow_reads < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        stream.close()
    assert time.monotonic() - started < 5 and len(stream_threads()) == 2, "both threads still hang in the pipe"
    consumer.join(5)
    assert not consumer.is_alive() and isinstance(outcome[0], CancelledError)
    left = [each.getMessage() for each in caplog.records if "state=left" in each.getMessage()]
    assert left and all("shard=shard-000001.tar rank=0" in line for line in left)
    while stream_threads() and time.monotonic() < deadline:  # a mount that comes back ends them
        release(pipe)
    assert stream_threads() == []


EXIT_WITH_A_HANGING_READ = """
import os, signal, sys, threading, time
from pathlib import Path
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream import decoder
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from tests.data_shards.stream.test_stream import order_of

def interrupt_when_it_hangs():
    while stream.slow_reads == 0:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

decoder.CLOSE_SECONDS = 0.1
shards = ShardSet.open(Path(sys.argv[1]))
unclosed = ShardStream(shards, order_of(shards))
with ShardStream(shards, order_of(shards), read_ahead=ReadAhead(slow_read_seconds=0.05)) as stream:
    threading.Thread(target=interrupt_when_it_hangs, daemon=True).start()
    try:
        list(stream)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_a_process_ends_although_a_read_hangs(set_copy: Path) -> None:
    hang(ShardSet.open(set_copy), 1)
    ended = subprocess.run(
        [sys.executable, "-c", EXIT_WITH_A_HANGING_READ, set_copy], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
