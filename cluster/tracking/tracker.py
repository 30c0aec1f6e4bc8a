"""MLflow tracking that training never waits for: a thread of the driver replays the run's spool."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.address import absolute_uri
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.names import check_experiment
from cardialign.cluster.tracking.replay import Replay, own
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.tracking.state import TrackingState, flatten
from cardialign.cluster.tracking.system_metrics import sample
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import public
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS, SYSTEM, TRACKING
from cardialign.pretrain.run.layout import RunDirectoryError, write_error

log = logging.getLogger(__name__)

SYNC_SECONDS, SYSTEM_SECONDS = 2.0, 5.0


class RunTracker:
    """The driver's side of a run: `start`, then a thread that samples the system and replays the spool, then `finish`.

    `optional`: a store that cannot be opened, or does not take the run, is a warning; the run is spooled, and
    `cardialign tracking sync` replays it later. Raises UserError from `start` otherwise.
    experiment None: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, or the default.
    """

    def __init__(
        self, run_dir: Path, tracking_uri: str, *, experiment: str | None = None, optional: bool = False
    ) -> None:
        self.run_dir, self.optional = run_dir, optional
        self.uri, self.experiment = absolute_uri(tracking_uri), experiment
        self.replay: Replay | None = None
        self.state: TrackingState | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = False

    @property
    def run_id(self) -> str:
        return self.state.run_id if self.state else ""

    @property
    def address(self) -> str:
        """The store's address as it may be shown; `uri` is the whole, with user and password."""
        return public(self.uri)

    def start(
        self,
        run_name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Open the store and the run before any training starts; begin to replay. datasets: of `groups.dataset`."""
        state = TrackingState.load(self.run_dir)
        if state is None or state.tracking_uri != self.address:
            state = TrackingState(self.address, self.experiment or "", run_name)
        state = own(state, self.run_dir)
        state.parameters, state.tags, state.status = flatten(parameters), dict(tags), "RUNNING"
        state.final, state.datasets = {}, [dict(each) for each in datasets]
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.replay = self._open(state)
            self.state = state
            state.save(self.run_dir)
        except OSError as error:
            raise write_error(self.run_dir, error) from None
        self._thread = threading.Thread(target=self._loop, name="mlflow-replay", daemon=True)
        self._thread.start()

    def _open(self, state: TrackingState) -> Replay | None:
        """The run in its store; None when the store does not take it and tracking is optional."""
        try:
            if self.experiment == "":
                check_experiment(self.experiment)
            replay = Replay(self.run_dir, state, mlflow_store.open_client(self.uri), self.uri)
            replay.open_run()
        except UserError as error:
            if not self.optional:
                raise
            log.warning("tracking=spool-only reason=%s", error.problem)
            return None
        return replay

    def _loop(self) -> None:
        next_sample = time.monotonic()
        while not self._stop.wait(SYNC_SECONDS) and not fence.fenced_out(self.run_dir):
            if time.monotonic() >= next_sample:
                next_sample = time.monotonic() + SYSTEM_SECONDS
                self._sample()
            self._guarded(lambda replay: replay.send_new())

    def _sample(self) -> None:
        assert self.state is not None
        step = max(0, self.state.cursors[METRICS].last_step)
        with contextlib.suppress(OSError):  # a full disk: figures of the machine are the last thing to stop for
            append_line(self.run_dir / SYSTEM, {"step": step, "time": time.time(), **sample(self.run_dir)})

    def _guarded(self, act: Callable[[Replay], object]) -> bool:
        """MLflow going away in the middle of a run is no reason to stop: the spool keeps everything."""
        if self.replay is None:
            return False
        try:
            act(self.replay)
        except Exception as error:
            if not self._complained:
                log.warning("tracking=waiting uri=%s error=%s", self.address, mlflow_store.reason(error, self.uri))
            self._complained = True
            return False
        self._complained = False
        return True

    def finish(self, status: str, final: Mapping[str, float] | None = None) -> bool:
        """Stop the thread, send the rest.

        Returns False when something waits in the spool for `cardialign tracking sync`.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        if self.state is None or fence.fenced_out(self.run_dir):  # the run is its successor's by now
            return False
        self.state.status, self.state.final, self.state.finished_at = status, dict(final or {}), time.time()
        try:
            self.state.save(self.run_dir)
        except RunDirectoryError as error:  # the outcome of the training counts for more
            log.warning("tracking=unsaved file=%s error=%s", self.run_dir / TRACKING, error.problem)
        delivered = self._guarded(lambda replay: replay.send_new()) and self._guarded(lambda replay: replay.close_run())
        if not delivered:
            log.warning("tracking=incomplete remedy=cardialign tracking sync %s", self.run_dir)
        return delivered
