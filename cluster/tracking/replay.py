"""The spool of a run -> its MLflow run, from a cursor and idempotently: nothing is lost, nothing is doubled.

MLflow keeps one row per (metric, timestamp, step, value). Before a batch is sent, the cursor notes the steps and the
time under which it will be stored. When the driver dies before it could note that they have been, the same steps go
out again under the same time and land on the same rows.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.spool import Cursor, Line, SpoolReader
from cardialign.cluster.tracking.state import TrackingState
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import CONFIG, METRICS, SYSTEM, TRACKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

BATCH = 1000
"""MLflow takes at most this many metrics in one call."""


class Replay:
    """Sends what is new in the spool of one run to its MLflow run; safe to repeat at any point."""

    def __init__(self, run_dir: Path, state: TrackingState, client: MlflowClient) -> None:
        self.run_dir, self.state, self.client = run_dir, state, client
        self.readers = [
            SpoolReader(run_dir / name, state.cursors.setdefault(name, Cursor()), once_per_step=name == METRICS)
            for name in (METRICS, SYSTEM)
        ]

    def open_run(self) -> str:
        """Create the MLflow run, or reopen the one the state names. Returns the run id.

        Parameters, tags and artifacts are (re)sent.
        """
        state = self.state
        if not state.run_id:
            experiment = mlflow_store.experiment_id(self.client, state.tracking_uri, state.experiment)
            state.run_id = self.client.create_run(experiment, run_name=state.run_name).info.run_id
            state.save(self.run_dir)
            log.info("tracking_run=created run_id=%s uri=%s", state.run_id, state.tracking_uri)
        known = self.client.get_run(state.run_id).data.params
        from mlflow.entities import Param, RunTag

        new = [Param(key, value[:6000]) for key, value in state.parameters.items() if key not in known]
        changed = {f"resumed_with.{k}": v for k, v in state.parameters.items() if k in known and known[k] != v[:6000]}
        tags = [RunTag(key, value) for key, value in {**state.tags, **changed}.items()]
        for start in range(0, max(len(new), 1), 100):
            self.client.log_batch(state.run_id, params=new[start : start + 100], tags=tags if start == 0 else [])
        self.client.update_run(state.run_id, status="RUNNING")
        if (self.run_dir / CONFIG).is_file():
            self.client.log_artifact(state.run_id, str(self.run_dir / CONFIG))
        return state.run_id

    def send_new(self) -> int:
        """Send every new line; the cursor is saved after each batch. Returns how many metric values went out."""
        sent = 0
        for reader in self.readers:
            while lines := reader.read(limit=50):
                lines = self._note_intention(reader.cursor, lines)
                metrics = [metric for line in lines for metric in _metrics(line, reader.cursor.intended_time)]
                for start in range(0, len(metrics), BATCH):
                    self.client.log_batch(self.state.run_id, metrics=metrics[start : start + BATCH])
                reader.take(lines)
                self.state.save(self.run_dir)
                sent += len(metrics)
        return sent

    def _note_intention(self, cursor: Cursor, lines: list[Line]) -> list[Line]:
        """The lines to send now; on disk before they go out.

        An intention left by a driver that died is carried out first, as it was.
        """
        if cursor.intended_step > cursor.last_step:
            again = [line for line in lines if line.step <= cursor.intended_step]
            if again:
                return again
        cursor.intended_step, cursor.intended_time = max(line.step for line in lines), time.time()
        self.state.save(self.run_dir)
        return lines

    def close_run(self) -> None:
        """Final figures (with the time they were made, so that repeating is harmless), then the status."""
        from mlflow.entities import Metric

        state = self.state
        at = int(1000 * state.finished_at)
        figures = [Metric(key, float(value), at, 0) for key, value in state.final.items() if math.isfinite(value)]
        if figures:
            self.client.log_batch(state.run_id, metrics=figures)
        self.client.update_run(state.run_id, status=state.status)
        state.save(self.run_dir)


def sync(run_dir: Path, tracking_uri: str | None = None) -> dict[str, Any]:
    """Replay everything a run has in its spool.

    Raises UserError when the run has none or the store cannot be opened.
    """
    state = TrackingState.load(run_dir)
    if state is None:
        raise UserError(
            f"{run_dir} has no {TRACKING}: it is not the directory of a tracked run",
            "give the --run-dir that `cardialign pretrain` used",
        )
    if tracking_uri is not None and mlflow_store.absolute_uri(tracking_uri) != state.tracking_uri:
        state = replace(
            state,
            tracking_uri=mlflow_store.absolute_uri(tracking_uri),
            run_id="",
            cursors={METRICS: Cursor(), SYSTEM: Cursor()},
        )
    replay = Replay(run_dir, state, mlflow_store.open_client(state.tracking_uri))
    status = state.status
    replay.open_run()
    sent = replay.send_new()
    state.status = status
    replay.close_run()
    return {
        "run_id": state.run_id,
        "tracking_uri": state.tracking_uri,
        "values_sent": sent,
        "steps": state.cursors[METRICS].last_step,
    }


def _metrics(line: Line, read_at: float) -> list[Metric]:
    from mlflow.entities import Metric

    at = int(1000 * float(line.values.get("time", read_at)))
    numbers = {
        k: v
        for k, v in line.values.items()
        if k not in ("step", "time") and isinstance(v, int | float) and not isinstance(v, bool)
    }
    return [Metric(key, float(value), at, max(0, line.step)) for key, value in numbers.items() if math.isfinite(value)]
