"""The driver of a pretraining run: places the workers on Ray, watches the run directory, and ends cleanly.

Ray Train restarts the worker group when a process dies; the training loop finds its newest verified checkpoint by
itself. `fit` runs in a thread, so that the main thread can show progress, take SIGTERM as "stop at a committed
checkpoint", and end the run at once on an error of the user's.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.environment.session import ray_session, threads_of_each
from cardialign.cluster.runs.failure import clear_requests, read_failure, request_stop
from cardialign.cluster.tracking.spool import SpoolReader
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.files import ATTEMPTS, CONFIG, METRICS, RESULT

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.training.checkpoints.judge import Resume, Verdict

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
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


@contextlib.contextmanager
def _sigterm_asks_for_a_stop(run_dir: Path) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: object) -> None:
        request_stop(run_dir, "SIGTERM")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trainer(config: RunConfig, run_dir: Path, workers: int, max_failures: int, resume: Resume) -> Any:
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cardialign.cluster.runs.worker import train_worker

    resources = ray.cluster_resources()
    gpu = resources.get("GPU", 0) >= workers
    if not gpu and resources.get("CPU", 0) < workers:
        raise UserError(
            f"{workers} workers asked for, the Ray cluster has {resources.get('CPU', 0):g} CPUs",
            "set --workers lower or add nodes",
        )
    log.info(
        "placement workers=%d accelerator=%s backend=%s", workers, "gpu" if gpu else "cpu", "nccl" if gpu else "gloo"
    )
    settings = {
        "config": config.resolved(),
        "run_dir": str(run_dir),
        "threads": threads_of_each(workers),
        "resume": resume,
    }
    return TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1, **({"GPU": 1} if gpu else {})}
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RayRunConfig(
            name=f"start-{int(time.time() * 1000)}",  # a new name: resuming is the loop's work, never Ray's snapshot
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )


class _Fit(threading.Thread):
    """`trainer.fit()` off the main thread; `error` holds what it raised."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        self.trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:  # handed to the main thread
            self.error = error


def _watch(fit: _Fit, run_dir: Path, on_step: OnStep | None) -> None:
    """Until `fit` ends: hand new metric lines to `on_step`.

    An error of the user's is raised as soon as a worker has written it down.
    """
    reader = SpoolReader(run_dir / METRICS)
    reader.skip_existing()
    alive = True
    while alive:
        fit.join(WATCH_SECONDS)
        alive = fit.is_alive()
        while lines := reader.read():
            reader.take(lines)
            for line in lines:
                if on_step is not None and line.values:
                    on_step(line.values)
        failure = read_failure(run_dir)
        if failure is not None:
            raise failure
    if fit.error is not None:
        raise UserError(
            _training_failed(fit.error),
            f"see the logs under {run_dir / 'ray'}, then run the same command again: it resumes",
        ) from fit.error


def _training_failed(error: BaseException) -> str:
    """The last line of each rank's error, without Ray's stack."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        parts = [f"rank {rank}: {str(problem).strip().splitlines()[-1]}" for rank, problem in sorted(failures.items())]
        return "training failed on " + "; ".join(parts)
    return f"training failed: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}"


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


def _starts(run_dir: Path) -> int:
    path = run_dir / ATTEMPTS
    return len(path.read_text().splitlines()) if path.is_file() else 0


def train_on_ray(
    config: RunConfig,
    run_dir: Path,
    *,
    workers: int = 2,
    address: str | None = None,
    max_failures: int = 3,
    on_step: OnStep | None = None,
    resume: Resume = "same",
) -> PretrainResult:
    """Train `config` in `run_dir` (on storage that every worker sees) with `workers` Ray workers.

    It resumes what is there. The caller holds `run_dir` (`cardialign.pretrain.run.lock`). on_step gets each line of
    `metrics.jsonl` as it is written. Raises UserError: a worker's own (collapse, data, checkpoint), a cluster that
    cannot hold the workers, or more than `max_failures` dead worker groups.
    """
    from cardialign.pretrain.training.checkpoints.judge import judge_start

    run_dir = run_dir.expanduser().absolute()
    judged = judge_start(config, run_dir, resume, quick=True)  # the workers compare every digest
    started, starts = time.monotonic(), _starts(run_dir)
    with ray_session(workers, address), _sigterm_asks_for_a_stop(run_dir):
        trainer = _trainer(config, run_dir, workers, max_failures, "extend" if resume == "extend" else "same")
        _claim(config, run_dir, judged)  # from here on the run is this start's
        fit = _Fit(trainer)
        fit.start()
        _watch(fit, run_dir, on_step)
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
        seconds=time.monotonic() - started,
        records_per_second=float(values["records_per_second"]),
        data_wait_share=float(values["data_wait_share"]),
        stopped=bool(values.get("stopped", False)),
        restarts=max(0, _starts(run_dir) - starts - 1),
        workers=workers,
    )
