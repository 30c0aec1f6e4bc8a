"""The driver of a pretraining run: places the workers on Ray, watches the run directory, and ends cleanly.

Ray Train restarts the worker group when a process dies; the training loop finds its newest verified checkpoint by
itself. `fit` runs in a thread, so that the main thread can show progress and what is waited for, take SIGTERM as "stop
at a committed checkpoint" (the second as "now"), and end the run at once on an error of the user's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.environment.handed_on import handed_on
from cardialign.cluster.environment.nodes import cluster_nodes
from cardialign.cluster.environment.session import CLIENT, ended_processes, ray_session, reach
from cardialign.cluster.environment.sizes import Sizes, sizes_of
from cardialign.cluster.environment.standstill import ray_resources
from cardialign.cluster.environment.threads import threads_asked
from cardialign.cluster.evaluations.beside import Beside
from cardialign.cluster.runs.deciding.lines import DecisionLines
from cardialign.cluster.runs.diagnosis import AGAIN, told
from cardialign.cluster.runs.failure import StoppedError, clear_requests, read_failure, request_stop
from cardialign.cluster.runs.fit import Fit
from cardialign.cluster.runs.placement import Placement, check_local, on_gpus, scaling, threads_of_worker, wanted
from cardialign.cluster.runs.reporting import StateLines
from cardialign.cluster.runs.waiting import SILENT_SECONDS, Watch
from cardialign.cluster.tracking.spool import SpoolReader
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import ATTEMPTS, CONFIG, LOGS, METRICS, RAY, RESULT, STOP

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.training.checkpoints.judge import Resume, Verdict

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
STOP_SECONDS, STOP_CHECKPOINT_SECONDS = 60.0, 300.0
"""How long a run that is asked to stop may stand still, and so while it writes a checkpoint."""
SAME_SIGNAL_SECONDS = 0.2
"""`timeout` signals its process, and then the process's group: that is one wish, not two."""
STILL_SECONDS = 2.0
"""After how long a run that stands still makes the driver look whether its Ray is there."""
OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PretrainResult:
    """A finished or stopped run.

    stopped: it ended at a committed checkpoint before its last step. restarts: worker groups lost on the way.
    """

    run_dir: Path
    steps: int
    final_loss: float
    checkpoint: Path | None
    digest: str
    seconds: float
    records_per_second: float
    data_wait_share: float
    stopped: bool
    restarts: int
    workers: int


class _Asked:
    """The first SIGTERM (or a file STOP) asks for a stop at a checkpoint, the second ends the run at once."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.signals = 0
        self._last = -SAME_SIGNAL_SECONDS

    def on_signal(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        same, self._last = now - self._last < SAME_SIGNAL_SECONDS, now
        if same:
            return
        self.signals += 1
        if self.signals > 1:
            signal.signal(signum, signal.SIG_DFL)
            raise StoppedError("stopped at once by a second SIGTERM", AGAIN)
        with contextlib.suppress(OSError):  # a full disk: `stop` holds without the file
            request_stop(self.run_dir, "SIGTERM")

    @property
    def stop(self) -> bool:
        return self.signals > 0 or (self.run_dir / STOP).exists()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM is ours in here; only the main thread can say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self.on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _trainer(
    config: RunConfig, run_dir: Path, workers: int | Sizes, placement: Placement | None = None,
    *, local: bool = False, start: str = "", resume: Resume = "same",
) -> Any:  # fmt: skip
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig

    from cardialign.cluster.runs.deciding.decider import Rules
    from cardialign.cluster.runs.deciding.keeper import KeeperSettings
    from cardialign.cluster.runs.deciding.policies import KeptTrainer
    from cardialign.cluster.runs.group import Deaths, GroupConfig
    from cardialign.cluster.runs.worker import train_worker

    placement, sizes = placement or Placement(), sizes_of(workers)
    device = "gpu" if placement.gpu_kind else placement.device
    gpu = on_gpus(ray.cluster_resources(), sizes.least, device, local=local)
    asked = wanted(sizes.most, gpu, placement)
    if local:
        check_local(wanted(sizes.least, gpu, placement), cluster_nodes())
    rules = Rules(sizes, placement.max_failures, 60 * placement.grow_minutes, 60 * placement.hang_minutes)
    log.info(
        "placement workers=%s accelerator=%s backend=%s", sizes, "gpu" if gpu else "cpu", "nccl" if gpu else "gloo"
    )
    (run_dir / RAY).mkdir(parents=True, exist_ok=True)  # with our rights: Ray itself writes in it as its umask says
    return KeptTrainer(
        train_worker,
        settings=KeeperSettings(str(run_dir), start, asked, rules, local),
        train_loop_config={
            "config": config.resolved(), "run_dir": str(run_dir), "resume": resume,
            "threads_asked": threads_of_worker(placement, threads_asked()),
        },
        scaling_config=ScalingConfig(**scaling(asked, placement)),
        torch_config=GroupConfig(
            backend="nccl" if gpu else "gloo",
            run_dir=str(run_dir),
            start=start,
            gpu=gpu,
            environment=handed_on(os.environ),
        ),
        run_config=RayRunConfig(
            name=f"start-{int(time.time() * 1000)}",  # a new name: resuming is the loop's work, never Ray's snapshot
            storage_path=str(run_dir / RAY),
            failure_config=FailureConfig(max_failures=placement.max_failures),
            callbacks=[Deaths(run_dir)],  # type: ignore[list-item] # Ray Train names a class of Ray Tune here
        ),
    )  # fmt: skip


def _watch(
    fit: Fit, watch: Watch, asked: _Asked, on_step: OnStep | None, also: Sequence[Callable[[], object]] = ()
) -> None:
    """Until `fit` ends: hand new metric lines to `on_step`, and look whether the run goes on. also: called each time.

    An error of the user's is raised as soon as a worker has written it down; StoppedError when the run was asked to
    stop and cannot reach a checkpoint; FencedOutError when another start has taken over.
    """
    run_dir = watch.run_dir
    reader = SpoolReader(run_dir / METRICS)
    reader.skip_existing()
    alive = True
    while alive:
        fit.join(WATCH_SECONDS)
        alive = fit.is_alive()
        while new := reader.read():
            reader.take(new)
            for line in new:
                if on_step is not None and line.values:
                    on_step(line.values)
        fence.check(run_dir)
        failure = read_failure(run_dir)
        if failure is not None:
            raise failure
        if alive:
            for look in also:
                look()
            watch.look()
            if watch.still_seconds > STILL_SECONDS and not watch.writing_checkpoint:
                _look_at_ray(asked)
            if asked.stop:
                _end_what_hangs(watch)
    if fit.error is not None:
        _look_at_head(fit.head)
        raise told(fit.error, _newest_logs(run_dir)) from fit.error


def _look_at_head(head: str | None) -> None:
    """Raise when a joined cluster does not answer any more: what died then has died with it."""
    if head is None:
        return
    try:
        reach(head)
    except UserError as error:
        raise UserError(f"the Ray cluster was lost: {error.problem}", f"look at its head node; then {AGAIN}") from None


def _head_of(address: str | None) -> str | None:
    """Where the cluster that was joined listens; None for a local Ray."""
    import ray

    if address is None or address.startswith(CLIENT):
        return address
    return str(ray.get_runtime_context().gcs_address)


def _look_at_ray(asked: _Asked) -> None:
    """Raise when the local Ray has ended under the run: Ray itself would end this process a minute later, unsaid."""
    ended = " and ".join(ended_processes())
    if ended and asked.stop:
        raise StoppedError(f"asked to stop, and {ended} of the local Ray has ended too", AGAIN)
    if ended:
        raise UserError(f"{ended} of the local Ray has ended: killed, or the machine is out of memory", AGAIN)


def _end_what_hangs(watch: Watch) -> None:
    """Asked to stop: raise StoppedError when nobody could write a checkpoint, or nothing moves any more."""
    if watch.entered == 0 and (not watch.ranks or watch.still_seconds > SILENT_SECONDS):
        raise StoppedError(f"stopped while waiting for {watch.state()[0]}", AGAIN)
    patience = STOP_CHECKPOINT_SECONDS if watch.writing_checkpoint else STOP_SECONDS
    if watch.still_seconds > patience:
        waits = watch.state()[0]
        raise StoppedError(f"asked to stop, but nothing has moved for {watch.still_seconds:.0f} s: {waits}", AGAIN)


def _claim(config: RunConfig, run_dir: Path, judged: Verdict) -> None:
    """Open `run_dir` for a start of this run that has been judged, and that nothing else can refuse any more."""
    from cardialign.pretrain.run.layout import write_error
    from cardialign.pretrain.run.restart import move_aside

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if judged.start_over:
            move_aside(run_dir)
        clear_requests(run_dir)
        write_json(run_dir / CONFIG, config.resolved(), indent=1)
    except OSError as error:
        raise write_error(run_dir, error) from None


@contextlib.contextmanager
def _lost_cluster(run_dir: Path) -> Iterator[None]:
    """What Ray and the file system raise in the driver is no mistake of ours: say whose it is."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise UserError(
                f"{error.filename} cannot be used: {error.strerror}",
                f"check {run_dir} and its free space; then {AGAIN}",
            ) from error
        raise UserError(f"the Ray cluster was lost: {error}", f"look at its head node; then {AGAIN}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "ray":
            raise
        raise told(error, _newest_logs(run_dir)) from error


def _newest_logs(run_dir: Path) -> Path:
    """Folder with the logs of the last worker group; that of all logs when none has come so far."""
    return max((path.parent for path in (run_dir / LOGS).glob("*/rank-*.log")), default=run_dir / LOGS)


def _starts(run_dir: Path) -> int:
    path = run_dir / ATTEMPTS
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def train_on_ray(
    config: RunConfig,
    run_dir: Path,
    *,
    workers: int | Sizes = 2,
    address: str | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "same",
    placement: Placement | None = None,
    steps: int | None = None,
) -> PretrainResult:
    """Train `config` in `run_dir` (on storage that every worker sees) with `workers` Ray workers.

    `Sizes`: with as many as the cluster has room for, fewer when a node is lost, more when one comes. It resumes what
    is there. The caller holds `run_dir` (`cardialign.pretrain.run.lock`). on_step gets each line of `metrics.jsonl` as
    it is written. steps: of the whole run, for what a job says of itself. Raises UserError: a worker's own (collapse,
    data, checkpoint), fewer GPUs than workers, a wait beyond `placement.wait_minutes`, a host that does not see
    `run_dir`, or more dead worker groups than `placement.max_failures`; StoppedError when it ends without the
    checkpoint that was asked for.
    """
    from cardialign.pretrain.training.checkpoints.judge import judge_start

    run_dir = run_dir.expanduser().absolute()
    judged = judge_start(config, run_dir, resume, quick=True)  # the workers compare every digest
    placement, asked, sizes = placement or Placement(), _Asked(run_dir), sizes_of(workers)
    started, starts = time.monotonic(), _starts(run_dir)
    mark = fence.new_mark()
    with _lost_cluster(run_dir):
        # Ray takes SIGTERM for itself when it starts: ours comes after it
        beside = Beside(config, run_dir, mark)
        with ray_session(sizes.most, address, run_dir / LOGS / f"ray-{mark.label}", beside.cpus), asked.listening():
            goes_on: Resume = "extend" if resume == "extend" else "same"
            trainer = _trainer(
                config, run_dir, sizes, placement, local=address is None, start=mark.start, resume=goes_on
            )
            _claim(config, run_dir, judged)  # only now: a start that is refused changes nothing
            fence.take_start(run_dir, mark)
            decided = DecisionLines(run_dir, sizes)
            needed = wanted(sizes.least, bool(trainer.scaling_config.use_gpu), placement)
            watch = Watch(run_dir, needed, sizes.most, 60 * placement.wait_minutes, ray_resources)
            fit = Fit(trainer, _head_of(address))
            fit.start()
            lines = StateLines(run_dir, steps)
            with contextlib.ExitStack() as at_end, decided.ending():
                at_end.callback(decided.close)
                at_end.callback(fit.give_up)
                at_end.callback(lines.tell)
                at_end.callback(beside.close)
                also = (
                    lambda: lines.look(asked.stop, watch.waits_for), lambda: beside.look(watch.complete), decided.look
                )  # fmt: skip
                _watch(fit, watch, asked, on_step, also)
                beside.finish(stopped=asked.stop)
    restarts = max(0, _starts(run_dir) - starts - 1 - decided.planned)
    result = _result(run_dir, decided.workers, time.monotonic() - started, restarts)
    if result.stopped:
        decided.stopped()
    return result


def _result(run_dir: Path, workers: int, seconds: float, restarts: int) -> PretrainResult:
    """What rank 0 has left. Raises UserError when it has left nothing."""
    values = read_json(run_dir / RESULT)
    if values is None:
        raise UserError(
            f"the run in {run_dir} ended without a result",
            "run the same command again: it resumes from the newest checkpoint",
        )
    return PretrainResult(
        run_dir=run_dir,
        steps=int(values["steps"]),
        final_loss=float(values["final_loss"]),
        checkpoint=Path(values["checkpoint"]) if values.get("checkpoint") else None,
        digest=str(values["digest"]),
        seconds=seconds,
        records_per_second=float(values["records_per_second"]),
        data_wait_share=float(values["data_wait_share"]),
        stopped=bool(values.get("stopped", False)),
        restarts=restarts,
        workers=workers,
    )
