"""The spool of a run -> its MLflow run, from a cursor and idempotently: nothing is lost, nothing is doubled.

MLflow keeps one row per (metric, timestamp, step, value). Before a batch is sent, the cursor notes the steps and the
time under which it will be stored. When the driver dies before it could note that they have been, the same steps go
out again under the same time and land on the same rows.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import absolute_uri, default_uri
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.groups import dataset_input, grouped
from cardialign.cluster.tracking.names import LONGEST_NAME, safe_key
from cardialign.cluster.tracking.places import check_place, check_run
from cardialign.cluster.tracking.spool import Cursor, Line, SpoolReader
from cardialign.cluster.tracking.state import TrackingState
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import public
from cardialign.pretrain.run.files import BEST_NOTE, CONFIG, EVALUATIONS, METRICS, PAGE, RESULT, SYSTEM, TRACKING
from cardialign.pretrain.run.layout import RunDirectoryError
from cardialign.pretrain.run.lock import locked_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

BATCH = 1000
"""MLflow takes at most this many metrics in one call."""
OUTCOME = (CONFIG, RESULT, BEST_NOTE, PAGE)
"""Files of a run that has ended, sent as artifacts; what is not there is left out."""
PARAMETERS = "parameters.json"
"""Artifact with the parameters of a run at their full length: MLflow's own are cut."""
MARK = "data.fingerprint"
"""Tag of every run of ours: what has it is a training that somebody else's must not be mixed with."""


class Replay:
    """Sends what is new in the spool of one run to its MLflow run; safe to repeat at any point."""

    def __init__(self, run_dir: Path, state: TrackingState, client: MlflowClient, uri: str = "") -> None:
        """uri: the whole address, where the state's lacks what is needed to sign in."""
        self.run_dir, self.state, self.client = run_dir, state, client
        self.uri = uri or state.tracking_uri
        self.readers = [
            SpoolReader(run_dir / name, state.cursors.setdefault(name, Cursor()), once_per_step=name == METRICS)
            for name in (METRICS, SYSTEM, EVALUATIONS)
        ]

    def open_run(self) -> str:
        """Create the MLflow run, or reopen the one the state names. Returns the run id.

        Artifacts, parameters and tags are (re)sent: a store that takes them takes the rest. Raises UserError when the
        experiment or the run is deleted or gone, and for whatever else keeps the store from taking the run.
        """
        state = self.state
        with mlflow_store.speaking(self.uri, "cannot take this run"):
            made = not state.run_id
            if made:
                state.run_id = self._named_run() or self._new_run()
                self._remember()
                log.info("tracking_run=created run_id=%s uri=%s", state.run_id, state.tracking_uri)
            run = self._run()
            try:
                check_place(str(run.info.artifact_uri), self.uri, f"MLflow run {state.run_id}")
                self._describe(run)
            except Exception:
                if made:  # nobody trains under it
                    self.client.update_run(state.run_id, status="FAILED")
                raise
            self.client.update_run(state.run_id, status="RUNNING")
        return state.run_id

    def _new_run(self) -> str:
        experiment = mlflow_store.experiment_id(self.client, self.uri, self.state.experiment)
        return str(self.client.create_run(experiment, run_name=self.state.run_name[:LONGEST_NAME]).info.run_id)

    def _remember(self) -> None:
        """Note the run that was just made; where that cannot be written the run goes again: nobody would find it."""
        try:
            self.state.save(self.run_dir)
        except RunDirectoryError:
            if self.state.run_id != os.environ.get("MLFLOW_RUN_ID", "").strip():
                self.client.delete_run(self.state.run_id)
            raise

    def _named_run(self) -> str:
        """The run that MLFLOW_RUN_ID names, for the first training that asks; "" when it names none."""
        named = os.environ.get("MLFLOW_RUN_ID", "").strip()
        if named and MARK in self._run(named).data.tags:
            raise UserError(
                f"MLflow run {named} (MLFLOW_RUN_ID) holds another training already",
                "unset MLFLOW_RUN_ID: the training then gets a run of its own",
            )
        return named

    def _run(self, run_id: str = "") -> Run:
        """The run as the store has it. Raises UserError when it is gone or deleted."""
        from mlflow.exceptions import MlflowException

        run_id = run_id or self.state.run_id
        again = f"`cardialign tracking sync {self.run_dir} --new-run` logs all of its steps into a new one"
        if not self.state.run_id:
            again = "set MLFLOW_RUN_ID to one that is there, or unset it: the training then gets a run of its own"
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"MLflow run {run_id} is not in {public(self.uri)}", again) from None
        if run.info.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow run {run_id} is deleted in {public(self.uri)}",
                f"bring it back with `mlflow runs restore --run-id {run_id}`; or {again}",
            )
        return run

    def _describe(self, run: Run) -> None:
        """Artifacts, parameters and tags of the run: what a training says of itself before its first step."""
        from mlflow.entities import Param, RunTag

        state, known = self.state, run.data.params
        theirs = {key for key in run.data.tags if key.startswith("mlflow.")}  # a description may be a person's by now
        self.client.log_text(state.run_id, json.dumps(state.parameters, indent=1), PARAMETERS)
        self._send_files(CONFIG)
        if state.datasets:
            self.client.log_inputs(state.run_id, datasets=[dataset_input(each) for each in state.datasets])
        new = [Param(key, value[:6000]) for key, value in state.parameters.items() if key not in known]
        changed = {f"resumed_with.{k}": v for k, v in state.parameters.items() if k in known and known[k] != v[:6000]}
        tags = [RunTag(key, value[:5000]) for key, value in {**state.tags, **changed}.items() if key not in theirs]
        for start in range(0, max(len(new), len(tags)), 100):
            self.client.log_batch(state.run_id, params=new[start : start + 100], tags=tags[start : start + 100])

    def _send_files(self, *names: str) -> None:
        for name in names:
            if (self.run_dir / name).is_file():
                self.client.log_artifact(self.state.run_id, str(self.run_dir / name))

    def send_new(self) -> int:
        """Send every new line; the cursor is saved after each batch. Returns how many metric values went out."""
        sent = 0
        for reader in self.readers:
            while lines := reader.read(limit=50):
                lines = self._note_intention(reader.cursor, lines)
                metrics = [metric for line in lines for metric in self._metrics(line, reader.cursor)]
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

    def _metrics(self, line: Line, cursor: Cursor) -> list[Metric]:
        from mlflow.entities import Metric

        at, name = int(1000 * (_number(line.values.get("time")) or cursor.intended_time)), self._name
        numbers = {key: _number(value) for key, value in line.values.items() if key not in ("step", "time")}
        return [Metric(name(key), value, at, max(0, line.step)) for key, value in numbers.items() if value is not None]

    def _name(self, key: str) -> str:
        return safe_key(grouped(key) if self.state.grouped else key)

    def close_run(self) -> None:
        """Final figures and the end, with the time they were made, so that repeating is harmless; files; the status."""
        from mlflow.entities import Metric

        state = self.state
        check_run(self.client, state.run_id)
        self._send_files(*OUTCOME)
        at = int(1000 * state.finished_at)
        figures = [Metric(key, float(value), at, 0) for key, value in state.final.items() if math.isfinite(value)]
        if figures:
            self.client.log_batch(state.run_id, metrics=figures)
        self.client.set_terminated(state.run_id, state.status, at or None)
        state.save(self.run_dir)


def sync(
    run_dir: Path, tracking_uri: str | None = None, *, experiment: str | None = None, new_run: bool = False
) -> dict[str, Any]:
    """Replay everything a run has in its spool.

    new_run: into a new MLflow run, whatever became of the old one; so it is in another store than the run's own, and in
    an `experiment` given. Raises UserError when the run has no spool or is still going on, or the store does not take
    it.
    """
    if TrackingState.load(run_dir) is None:
        raise UserError(
            f"{run_dir} has no {TRACKING}: it is not the directory of a tracked run",
            "give the --run-dir that `cardialign pretrain` used",
        )
    with locked_run(run_dir, "a run that lives sends its figures itself; sync it when it has ended"):
        state = TrackingState.load(run_dir)
        assert state is not None
        return _sent(run_dir, state, tracking_uri, experiment, new_run)


def _sent(
    run_dir: Path, state: TrackingState, tracking_uri: str | None, experiment: str | None, new_run: bool
) -> dict[str, Any]:
    uri = absolute_uri(tracking_uri) if tracking_uri is not None else _signed(state.tracking_uri)
    if new_run or experiment is not None or public(uri) != state.tracking_uri:
        state = state.anew(tracking_uri=public(uri), experiment=experiment or state.experiment)
    state = own(state, run_dir)
    replay = Replay(run_dir, state, mlflow_store.open_client(uri), uri)
    status = state.status
    replay.open_run()
    with mlflow_store.speaking(uri, "did not take all of this run"):
        sent = replay.send_new()
        state.status = status
        replay.close_run()
    return {
        "run_id": state.run_id,
        "tracking_uri": state.tracking_uri,
        "values_sent": sent,
        "steps": state.cursors[METRICS].last_step,
    }


def own(state: TrackingState, run_dir: Path) -> TrackingState:
    """`state` of the run in `run_dir`; one that came with a copy of another run's directory gets a run of its own."""
    origin = state.copied_from(run_dir)
    if origin is None:
        return state
    log.warning("tracking=new-run reason=%s is a copy of %s, whose MLflow run stays its own", run_dir, origin)
    return state.anew()


def _signed(uri: str) -> str:
    """The address of a state with user and password, where MLFLOW_TRACKING_URI is the same one and has them."""
    named = absolute_uri(default_uri())
    return named if public(named) == uri else uri


def _number(value: Any) -> float | None:
    """A figure that MLflow keeps; None for what is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
