"""A run for Prometheus: the driver answers `GET /metrics` from the files of the run directory.

Labels are `run` (the name in the recipe) and, where a figure belongs to one, `rank`. Nothing else of a run is told: no
path, host, record or text of a report. `deploy/grafana` has a dashboard and alert rules on these names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.cluster.cli.options import LOCAL
from cardialign.cluster.watching.cause import WORDS
from cardialign.cluster.watching.state import RunState, run_state
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "cardialign"
LONGEST_LABEL = 120

RUN: dict[str, tuple[str, Callable[[RunState], float | None]]] = {
    "running": ("1 while steps are being made", lambda s: float(s.moves)),
    "stalled": ("1 when the last step is too old for a run that is not over", lambda s: float(s.state == "stalled")),
    "failed": ("1 when the run has ended with an error", lambda s: float(s.state == "failed")),
    "last_step_age_seconds": ("since the last step", lambda s: s.last_step_age_seconds),
    "planned_steps": ("steps that the run has in all", lambda s: s.steps),
    "eta_seconds": ("to the last step at the present pace", lambda s: s.eta_seconds),
    "loss": ("loss of the last step", lambda s: s.loss),
    "records_per_second": ("records of all ranks, pauses included", lambda s: s.records_per_second),
    "mfu_ratio": ("FLOPs of the model per second over the peak of all devices", lambda s: s.mfu),
    "effective_negatives": ("mean sum of the weights of the negatives of a record", lambda s: s.effective_negatives),
    "effective_rank": ("RankMe of the ECG embeddings of the batch", lambda s: s.effective_rank),
    "effective_rank_floor": ("effective rank below which the run ends itself", lambda s: s.collapse_below),
    "checkpoint_step": ("step of the newest committed checkpoint", lambda s: s.checkpoint.step),
    "checkpoint_age_seconds": ("since the newest commit, or the start without one", lambda s: s.checkpoint.age_seconds),
    "checkpoint_pause_seconds": (
        "for which the last checkpoint held up the steps",
        lambda s: s.checkpoint.pause_seconds,
    ),
    "checkpoint_commit_seconds": (
        "from the step of the last checkpoint until it was committed behind the steps",
        lambda s: s.checkpoint.commit_seconds,
    ),
    "checkpoint_interval_seconds": ("between planned checkpoints at this pace", lambda s: s.checkpoint.every_seconds),
}
"""Gauge -> (what it is, its value)."""
COUNTS: dict[str, tuple[str, Callable[[RunState], int]]] = {
    "steps": ("steps done", lambda s: s.step),
    "restarts": ("worker groups that came after another", lambda s: len(s.restarts)),
}
"""Counter (`_total` is added) -> (what it is, its value)."""
SHARES = {
    "data": "waiting for records",
    "exchange": "in collectives in which even the slowest rank stands",
    "straggler": "waiting for the slowest rank",
    "checkpoint": "pausing for checkpoints",
    "compute": "for the model's own work",
}
RANK = {"step_p50_seconds": ("median step", "p50"), "step_p99_seconds": ("99th percentile of a step", "p99")}
"""Gauge of a rank -> (what it is, the field of its note)."""
RANK_TOTALS = {
    "step_seconds": ("of all steps, pauses included", "seconds"),
    "data_queue_wait_seconds": ("in which the step stood and waited for its batch", "data"),
    "data_read_seconds": ("of reading in the background threads", "read"),
    "data_decode_seconds": ("of decoding in the background threads", "decode"),
    "exchange_wait_seconds": ("in collectives", "exchange"),
    "own_work_seconds": ("of the rank's own work", "own"),
    "checkpoint_seconds": ("of pauses for checkpoints", "checkpoint"),
}
"""Counter of a rank (`_total` is added) -> (what it is, its total in the note)."""


class RunCollector:
    """What a scrape of one run finds: its state at that moment."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir, self.name = run_dir, shown(name)[:LONGEST_LABEL]

    def describe(self) -> list[Metric]:
        """Nothing is read from the run when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = run_state(self.run_dir)
        own = [self.name]
        for name, (told, value_of) in RUN.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", f"{told}.", labels=["run"])
            value = value_of(state)
            if value is not None:
                gauge.add_metric(own, float(value))
            yield gauge
        for word in WORDS:
            gauge = GaugeMetricFamily(f"{PREFIX}_{word}_ratio", f"share of the time {SHARES[word]}.", labels=["run"])
            if state.cause is not None:
                gauge.add_metric(own, state.cause.shares[word])
            yield gauge
        for name, (told, count_of) in COUNTS.items():
            counter = CounterMetricFamily(f"{PREFIX}_{name}", f"{told}.", labels=["run"])
            counter.add_metric(own, count_of(state))
            yield counter
        for name, (told, key) in RANK.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", f"{told} of a rank.", labels=["run", "rank"])
            for rank in state.ranks:
                gauge.add_metric([self.name, str(rank.rank)], getattr(rank, key))
            yield gauge
        for name, (told, key) in RANK_TOTALS.items():
            counter = CounterMetricFamily(f"{PREFIX}_{name}", f"seconds {told}.", labels=["run", "rank"])
            for rank in state.ranks:
                counter.add_metric([self.name, str(rank.rank)], rank.totals.get(key, 0.0))
            yield counter


@contextlib.contextmanager
def exported(run_dir: Path, name: str, port: int | None, host: str | None = None) -> Iterator[str | None]:
    """While open, answer `GET http://host:port/metrics` with the run in `run_dir`; the address is handed out.

    port None: nothing is opened; 0: a free one. host None: this machine alone. The server has threads of its own and
    never touches training. Raises UserError when the port cannot be opened, UsageError for a host without a name, or
    without a port.
    """
    if port is None:
        if host is not None:
            raise UsageError(f"--metrics-host {host} serves nothing without a port", "add --metrics-port 9464")
        yield None
        return
    host = LOCAL if host is None else host
    if not host.strip():  # an empty one would mean every network that this machine is in
        raise UsageError("--metrics-host is empty", "name who may ask; is the variable set that it was made of?")
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(run_dir, name))  # type: ignore[arg-type]
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"metrics cannot be served at {host}:{port}: {error}",
            "give another --metrics-port (0: a free one) or --metrics-host, or leave them out",
        ) from None
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)
