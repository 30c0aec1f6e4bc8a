"""The driver of a pretraining run: starts a local Ray or joins one, places the workers, watches the run directory, and ends cleanly.

Ray Train restarts the worker group when a process dies; the training loop finds its newest verified checkpoint by itself. `fit` runs in a thread,
so that the main thread can show progress, take SIGTERM as "stop at a committed checkpoint", and end the run at once on an error of the user's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.subcommand import source_root
from cardialign.cluster.runs.failure import ATTEMPTS, CONFIG, RESULT, clear_requests, read_failure, request_stop
from cardialign.cluster.tracking.spool import SpoolReader, read_json, write_json
from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Nothing large goes through Ray's object store: shards are read from files."""
WATCH_SECONDS = 0.25
LOCAL_RAY = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains the one node of a local Ray: one process less
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a worker, and its reports, are seen sooner
}
OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PretrainResult:
    """A finished or stopped run. `stopped`: it ended at a committed checkpoint before its last step; `restarts`: worker groups lost on the way."""

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


def worker_environment(workers: int, local: bool) -> dict[str, str]:
    """Environment of the workers: where our packages are, how many threads each may use, which accelerator DeepSpeed takes."""
    from torch import cuda

    threads = str(max(1, (os.cpu_count() or 1) // workers))
    variables = {"OMP_NUM_THREADS": threads, "RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}
    variables["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "0")
    if local:  # a joined cluster gets the packages through `py_modules`
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source_root()), os.environ.get("PYTHONPATH", "")]))
    if local and not cuda.is_available():
        variables["DS_ACCELERATOR"] = "cpu"
    for name, value in os.environ.items():
        if name.startswith(("CARDIALIGN_", "GLOO_", "NCCL_")):
            variables[name] = value
    return variables


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """`os.environ` with `variables`, as it was afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ray_session(workers: int, address: str | None) -> Iterator[None]:
    """A local Ray without dashboard and with a small object store, or the cluster at `address`; shut down (left, if joined) at the end.

    Raises UserError when the cluster at `address` does not answer.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if address is None:
        for name, value in LOCAL_RAY.items():
            os.environ.setdefault(name, value)
    import ray

    scratch: Path | None = None
    environment = worker_environment(workers, local=address is None)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            scratch = Path(
                tempfile.mkdtemp(prefix="ray-", dir="/tmp")
            )  # socket paths below it must stay under 108 bytes
            with _environment(
                environment
            ):  # inherited by every process of the local Ray: cheaper than a runtime_env, which starts an agent
                ray.init(
                    address="local",
                    num_cpus=max(workers, os.cpu_count() or 1),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(scratch),
                    _system_config={"prestart_worker_first_driver": False},
                    **quiet,
                )
        else:
            modules = [str(source_root() / "cardialign")] if "site-packages" not in str(source_root()) else []
            try:
                ray.init(address=address, runtime_env={"env_vars": environment, "py_modules": modules}, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                first_line = next(iter(str(error).splitlines()), "no answer")
                raise UserError(
                    f"no Ray cluster at {address!r}: {first_line}",
                    "check --address; a cluster started with `ray start` wants RAY_AUTH_MODE=token and its token here too; without --address a local Ray is started",
                ) from None
        yield
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


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


def _trainer(config: RunConfig, run_dir: Path, workers: int, max_failures: int) -> Any:
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
        "threads": max(1, (os.cpu_count() or 1) // workers),
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
    """Until `fit` ends: hand new metric lines to `on_step`, and raise an error of the user's as soon as a worker has written it down."""
    reader = SpoolReader(run_dir / "metrics.jsonl")
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


def _claim(config: RunConfig, run_dir: Path) -> None:
    """Open `run_dir` for a start of this run. Whether the run that is already there may continue with `config` is for the loop to judge."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        clear_requests(run_dir)
        write_json(run_dir / CONFIG, config.resolved())
    except OSError as error:
        raise UserError(
            f"run directory {run_dir} cannot be written: {error.strerror}", "give another --run-dir"
        ) from None


def _starts(run_dir: Path) -> int:
    path = run_dir / ATTEMPTS
    return len(path.read_text().splitlines()) if path.is_file() else 0


def pretrain(
    config: RunConfig,
    run_dir: Path,
    *,
    workers: int = 2,
    address: str | None = None,
    max_failures: int = 3,
    on_step: OnStep | None = None,
) -> PretrainResult:
    """Train `config` in `run_dir` (on storage that every worker sees) with `workers` Ray workers; resumes what is there.

    The caller holds `run_dir` (`cardialign.pretrain.run.lock`). on_step gets each line of `metrics.jsonl` as it is written. Raises UserError: a worker's own (collapse, data, checkpoint), a cluster that
    cannot hold the workers, or more than `max_failures` dead worker groups.
    """
    run_dir = run_dir.expanduser().absolute()
    _claim(config, run_dir)
    started, starts = time.monotonic(), _starts(run_dir)
    with ray_session(workers, address), _sigterm_asks_for_a_stop(run_dir):
        fit = _Fit(_trainer(config, run_dir, workers, max_failures))
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
