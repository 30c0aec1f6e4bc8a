"""The Ray that work runs on: a local one, started and ended with the work, or a cluster that is joined and left."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.versions import source_root
from cardialign.data_shards.errors import UserError

OBJECT_STORE_BYTES = 128 * 2**20
"""Nothing large goes through Ray's object store: shards are read from files."""
LOCAL_RAY = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains the one node of a local Ray: one process less
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a worker, and its reports, are seen sooner
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextlib.contextmanager
def ray_session(workers: int, address: str | None) -> Iterator[None]:
    """A local Ray without dashboard and with a small object store, or the cluster at `address`.

    At the end the local Ray is shut down, a joined cluster left. Raises UserError when the cluster does not answer.
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
    environment = _worker_environment(workers, local=address is None)
    try:
        if address is None:
            scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths below must stay under 108 bytes
            _start(workers, environment, scratch)
        else:
            _join(address, environment)
        yield
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def threads_of_each(workers: int) -> int:
    """CPU threads for each of `workers` on this machine."""
    return max(1, (os.cpu_count() or 1) // workers)


def _worker_environment(workers: int, local: bool) -> dict[str, str]:
    """Where our package is, how many threads each worker may use, which accelerator DeepSpeed takes."""
    from torch import cuda

    threads = str(threads_of_each(workers))
    variables = {"OMP_NUM_THREADS": threads, "RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}
    variables["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "0")
    if local:  # a joined cluster gets the package through `py_modules`
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source_root()), os.environ.get("PYTHONPATH", "")]))
    if local and not cuda.is_available():
        variables["DS_ACCELERATOR"] = "cpu"
    for name, value in os.environ.items():
        if name.startswith(("CARDIALIGN_", "GLOO_", "NCCL_")):
            variables[name] = value
    return variables


def _start(workers: int, environment: dict[str, str], scratch: Path) -> None:
    """A local Ray whose every process inherits `environment`: cheaper than a `runtime_env`, which starts an agent."""
    import ray

    with _environment(environment):
        ray.init(
            address="local",
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(scratch),
            _system_config={"prestart_worker_first_driver": False},
            **QUIET,
        )


def _join(address: str, environment: dict[str, str]) -> None:
    import ray

    runtime: dict[str, Any] = {"env_vars": environment}
    if "site-packages" not in str(source_root()):  # else it is on the nodes; no empty list for Ray
        runtime["py_modules"] = [str(source_root() / "cardialign")]
    try:
        ray.init(address=address, runtime_env=runtime, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first_line = next(iter(str(error).splitlines()), "no answer")
        raise UserError(
            f"no Ray cluster at {address!r}: {first_line}",
            "check --address; a cluster started with `ray start` wants RAY_AUTH_MODE=token and its token here too; "
            "without --address a local Ray is started",
        ) from None


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
