"""Why a run is slow, in one word and one line, from the notes of its ranks (`cardialign.pretrain.run.figures`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from cardialign.pretrain.run.figures import RankFigures

Word = Literal["data", "exchange", "straggler", "checkpoint", "compute"]
WORDS: tuple[Word, ...] = ("data", "exchange", "straggler", "checkpoint", "compute")
LEAST = {"data": 0.10, "straggler": 0.10, "checkpoint": 0.10, "exchange": 0.25}
"""Share of the time from which each is a cause. Every run of several ranks exchanges: that is none below a quarter."""
LATER = 1.25
"""A straggler's own work is so many times that of the other ranks."""
SLOW_SHARD, SLOW_READ = 0.5, 3.0
"""A shard is named when it takes this share of the time of reading, and a read from it this many times another's."""


@dataclass(frozen=True)
class Cause:
    """What most of the lost time goes to.

    word      one of `WORDS`; "compute" when nothing else takes enough to be named.
    line      the same as a sentence, with its figures.
    shares    word -> share of the run's time; together 1.
    kind      of data: "read", "decode" or "shard"; "" otherwise.
    rank, host, shard   who or what is slow, where that is known; None and "".
    """

    word: Word
    line: str
    shares: dict[str, float] = field(default_factory=dict)
    kind: str = ""
    rank: int | None = None
    host: str = ""
    shard: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def cause_of(ranks: Sequence[RankFigures]) -> Cause | None:
    """The cause that the notes of one worker group show; None before its second step.

    All ranks take every step together, so a step of T seconds is on each rank r
        T = data_r + agree_r + exchange_r + own_r          (means over the window, pauses for checkpoints left out)
    and a rank that is late makes the others wait in a collective. What the run loses to each:
        data        min over r of (data_r + agree_r), at most the sum of data_r: the rank whose batch is late waits for
                    it, all others wait for that rank in the exchange before the step, whichever rank it is each time.
        straggler   the largest own_r less the median of the other ranks' own work.
        exchange    what remains of T - largest own_r: time in collectives in which even the slowest rank stands.
        compute     the median of the other ranks' own work (with one rank: its own).
        checkpoint  the last pause / the time from the end of the pause before it; all others share the rest.
    Named is the largest share of those that reach LEAST (data, straggler and checkpoint 10 %, exchange 25 %), a
    straggler only when its own work is LATER (1.25) times the others'; else "compute". Ranks that are slow in turns
    count as exchange.
    Data is "shard" when one shard takes half of the waiting rank's time of reading and each of its reads 3 times as
    long as others; else "read" or "decode", whichever took the threads longer.
    """
    seen = [rank for rank in ranks if rank.window_steps > 0 and rank.window_seconds > 0]
    if not seen:
        return None
    shares, slowest = _shares(seen)
    named = [word for word in LEAST if shares[word] >= LEAST[word]]
    others = [_per_step(rank, rank.own) for rank in seen if rank is not slowest]
    if "straggler" in named and _per_step(slowest, slowest.own) < LATER * median(others):
        named.remove("straggler")
    word = max(named, key=lambda name: shares[name], default="compute")
    if word == "data":
        return _data(seen, shares)
    if word == "straggler":
        line = (
            f"straggler: rank {slowest.rank} on {slowest.host} works {_time(_per_step(slowest, slowest.own))} a step, "
            f"the others {_time(median(others))}; they wait for it {_percent(shares[word])} of the time"
        )
        return Cause("straggler", line, shares, rank=slowest.rank, host=slowest.host)
    if word == "checkpoint":
        longest = max(seen, key=_pause_share)
        line = (
            f"checkpoint: the last pause took {_time(longest.pause)}, "
            f"{_percent(shares[word])} of the {_time(longest.pause_interval)} since the one before"
        )
        return Cause("checkpoint", line, shares)
    if word == "exchange":
        line = (
            f"exchange: even the slowest rank stands in collectives {_percent(shares[word])} of the time; "
            f"a step of rank {slowest.rank} has {_time(_per_step(slowest, slowest.own))} of own work"
        )
        return Cause("exchange", line, shares)
    line = f"compute: {_percent(shares['compute'])} of the time is the model's own work, and nothing else is in its way"
    return Cause("compute", line, shares)


def _shares(ranks: Sequence[RankFigures]) -> tuple[dict[str, float], RankFigures]:
    """Word -> share of the time, and the rank with the most work of its own."""
    slowest = max(ranks, key=lambda rank: _per_step(rank, rank.own))
    most = _per_step(slowest, slowest.own)
    usual = median([_per_step(rank, rank.own) for rank in ranks if rank is not slowest] or [most])
    late = min(_per_step(rank, rank.data + rank.agree) for rank in ranks)
    blocked = min(_per_step(rank, rank.data + rank.agree + rank.exchange) for rank in ranks)
    data = min(late, sum(_per_step(rank, rank.data) for rank in ranks))
    seconds = {
        "data": data,
        "exchange": max(0.0, blocked - data),
        "straggler": max(0.0, most - usual),
        "compute": min(usual, most),
    }
    total = max(sum(seconds.values()), 1e-12)
    pause = max(map(_pause_share, ranks))
    shares = {word: (1 - pause) * seconds[word] / total for word in seconds}
    return {word: pause if word == "checkpoint" else shares[word] for word in WORDS}, slowest


def _data(ranks: Sequence[RankFigures], shares: dict[str, float]) -> Cause:
    waiting = max(ranks, key=lambda rank: _per_step(rank, rank.data))
    line = f"data: {_percent(shares['data'])} of the time goes by waiting for records; "
    if slow_shard(waiting):
        one, others = waiting.shard_seconds / waiting.shard_reads, _others(waiting)
        line += f"a read from {waiting.shard} takes {_time(one)}, from others {_time(others)} (rank {waiting.rank})"
        return Cause("data", line, shares, "shard", waiting.rank, waiting.host, waiting.shard)
    kind = "read" if waiting.read >= waiting.decode else "decode"
    taken = _per_step(waiting, max(waiting.read, waiting.decode))
    way = "reading" if kind == "read" else "decoding"
    line += f"{way} takes the threads of rank {waiting.rank} {_time(taken)} a step"
    return Cause("data", line, shares, kind, waiting.rank, waiting.host)


def slow_shard(rank: RankFigures) -> bool:
    """Whether one shard alone makes the reads of this rank slow: SLOW_SHARD and SLOW_READ."""
    if not rank.shard or rank.shard_reads == 0 or rank.reads == rank.shard_reads:
        return False
    return (
        rank.shard_seconds >= SLOW_SHARD * rank.read
        and rank.shard_seconds / rank.shard_reads >= SLOW_READ * _others(rank)
    )


def _others(rank: RankFigures) -> float:
    """Seconds of a read from another shard than the slowest."""
    return max(0.0, rank.read - rank.shard_seconds) / max(1, rank.reads - rank.shard_reads)


def _per_step(rank: RankFigures, seconds: float) -> float:
    return seconds / rank.window_steps


def _pause_share(rank: RankFigures) -> float:
    return min(1.0, rank.pause / rank.pause_interval) if rank.pause_interval > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
