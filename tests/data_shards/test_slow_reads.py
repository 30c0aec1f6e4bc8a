"""A read that hangs is reported while it hangs, with shard, rank and seconds."""

from __future__ import annotations

import logging
import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.shard_set import ShardSet
from data_shards.slow_reads import SlowRead, SlowReadWatch
from data_shards.stream import ShardStream
from tests.data_shards.test_stream import order_of, stream_threads


def test_a_hanging_shard_is_named_while_the_consumer_waits(set_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet.open(set_copy)
    pipe = set_copy / "shard-000001.tar"
    pipe.unlink()
    os.mkfifo(pipe)  # opening it for reading blocks until somebody opens it for writing
    caught: list[DataError] = []

    def consume(stream: ShardStream) -> None:
        try:
            list(stream)
        except DataError as error:
            caught.append(error)

    with caplog.at_level(logging.WARNING), ShardStream(shards, order_of(shards), rank=1, world_size=2, slow_read_seconds=0.05) as stream:
        consumer = threading.Thread(target=consume, args=(stream,))
        consumer.start()
        deadline = time.monotonic() + 20
        while stream.slow_reads == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert consumer.is_alive() and stream.slow_reads >= 1
        line = next(record.getMessage() for record in caplog.records if "slow-read" in record.getMessage())
        while consumer.is_alive() and time.monotonic() < deadline:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # lets every reader that waits go on
            except OSError:
                time.sleep(0.01)  # no reader waits at this moment
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
    assert [report.done for report in reports][-1] and watch.count == 1
    seconds = [report.seconds for report in reports]
    assert seconds[0] >= 0.04 and all(later >= 1.9 * earlier for earlier, later in pairwise(seconds[:-1]))
