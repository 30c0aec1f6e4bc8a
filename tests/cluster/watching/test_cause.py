"""Why a run is slow, by arithmetic on paper: what each rank did in a second of every step, and who held up whom."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cardialign.cluster.watching.cause import WORDS, Cause, cause_of
from cardialign.pretrain.run.figures import RankFigures

STEPS = 100


def rank(number: int, **per_step: Any) -> RankFigures:
    """Figures of a rank from seconds (and reads) per step; those of pauses are as they are."""
    given = {"world_size": 2, "host": f"node-{number}", "group": "a.1", "time": 0.0, "step": 101, "steps": 1000}
    whole = {name: per_step.pop(name) for name in ("pause", "pause_interval", "shard") if name in per_step}
    sums = {name: STEPS * value for name, value in per_step.items()}
    seconds = sum(sums.get(name, 0.0) for name in ("data", "agree", "exchange", "own"))
    return RankFigures(
        rank=number, global_batch=64, window_steps=STEPS, window_seconds=seconds, **given, **whole, **sums
    )


def cause(*ranks: RankFigures) -> Cause:
    found = cause_of(ranks)
    assert found is not None
    return found


def shares(found: Cause) -> dict[str, float]:
    return {word: round(share, 6) for word, share in found.shares.items() if share > 1e-9}


def test_a_rank_that_works_longer_than_the_others_is_the_straggler() -> None:
    found = cause(rank(0, exchange=0.6, own=0.4), rank(1, own=1.0), rank(2, exchange=0.6, own=0.4))
    assert (found.word, found.rank, found.host) == ("straggler", 1, "node-1")
    assert shares(found) == {"straggler": 0.6, "compute": 0.4}
    assert "rank 1 on node-1 works 1 s a step, the others 400 ms" in found.line and "60 % of the time" in found.line


def test_a_little_more_work_on_rank_zero_makes_no_straggler() -> None:
    found = cause(rank(0, own=1.0), rank(1, own=0.85, exchange=0.15))
    assert found.word == "compute" and shares(found) == {"straggler": 0.15, "compute": 0.85}


def test_records_that_come_late_are_data_on_whichever_rank() -> None:
    one = cause(rank(0, data=0.5, own=0.5, read=0.9), rank(1, agree=0.5, own=0.5))
    assert (one.word, one.kind, one.rank) == ("data", "read", 0) and shares(one) == {"data": 0.5, "compute": 0.5}
    in_turns = cause(
        rank(0, data=0.25, agree=0.25, own=0.5, decode=0.9), rank(1, data=0.25, agree=0.25, own=0.5, decode=0.9)
    )
    assert (in_turns.word, in_turns.kind) == ("data", "decode")
    assert shares(in_turns) == {"data": 0.5, "compute": 0.5}


def test_late_records_on_one_rank_and_slow_work_on_another_are_told_apart() -> None:
    found = cause(rank(0, data=1.0, own=1.0, exchange=1.0), rank(1, agree=1.0, own=2.0))
    assert {word: round(3 * share, 6) for word, share in found.shares.items() if share} == {
        "data": 1.0, "straggler": 1.0, "compute": 1.0,
    }  # fmt: skip


def test_a_wait_for_a_rank_whose_step_ends_late_is_no_wait_for_data() -> None:
    """Rank 1 does its extra work after the last collective: rank 0 meets it before the next step."""
    found = cause(rank(0, agree=0.5, own=0.5), rank(1, own=1.0))
    assert (found.word, found.rank) == ("straggler", 1) and shares(found) == {"straggler": 0.5, "compute": 0.5}


def test_time_in_collectives_that_nobody_is_late_for_is_exchange_from_a_quarter_on() -> None:
    assert cause(rank(0, exchange=0.4, own=0.6), rank(1, exchange=0.4, own=0.6)).word == "exchange"
    assert cause(rank(0, exchange=0.2, own=0.8), rank(1, exchange=0.2, own=0.8)).word == "compute"


def test_the_pause_for_a_checkpoint_is_spread_over_the_time_between_two() -> None:
    often = cause(rank(0, own=1.0, pause=12.0, pause_interval=60.0))
    assert often.word == "checkpoint" and shares(often) == {"checkpoint": 0.2, "compute": 0.8}
    assert "took 12 s" in often.line and "20 % of the 60 s" in often.line
    assert cause(rank(0, own=1.0, pause=12.0, pause_interval=600.0)).word == "compute"


def test_one_shard_that_is_slow_to_read_is_named_and_a_slow_disk_is_not_a_shard() -> None:
    waits = {"data": 0.5, "own": 0.5, "reads": 30, "shard": "shard-000007.tar"}
    one = cause(rank(0, **waits, read=1.2, shard_seconds=1.0, shard_reads=1))
    assert (one.kind, one.shard) == ("shard", "shard-000007.tar")
    assert "a read from shard-000007.tar takes 1 s, from others 6.9 ms" in one.line
    disk = cause(rank(0, **waits, read=1.2, shard_seconds=0.08, shard_reads=2))
    assert (disk.kind, disk.shard) == ("read", "") and "reading takes the threads of rank 0 1.2 s a step" in disk.line
    alone = cause(rank(0, **{**waits, "reads": 30}, read=1.2, shard_seconds=1.2, shard_reads=30))
    assert alone.kind == "read", "the only shard of a set is none that is slower than others"


def test_the_largest_of_several_causes_is_named() -> None:
    found = cause(rank(0, data=0.2, own=0.8, read=1, pause=30.0, pause_interval=100.0))
    assert found.word == "checkpoint" and shares(found) == {"data": 0.14, "checkpoint": 0.3, "compute": 0.56}


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_a_whole_whatever_the_ranks_report(seed: int) -> None:
    draw = random.Random(seed)
    ranks = [
        rank(number, **{name: draw.choice([0.0, draw.random()]) for name in ("data", "agree", "exchange", "own")})
        for number in range(draw.randint(1, 8))
    ]
    found = cause_of([*ranks, rank(9, own=0.1)])
    assert found is not None and found.word in WORDS and set(found.shares) == set(WORDS)
    assert sum(found.shares.values()) == pytest.approx(1.0) and min(found.shares.values()) >= 0.0


def test_before_the_second_step_nothing_is_said() -> None:
    assert cause_of([]) is None
    first = RankFigures(0, 1, "node", "a.1", 0.0, step=1, steps=10, global_batch=8)
    assert cause_of([first]) is None
