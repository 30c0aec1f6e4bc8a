"""What Ray Train runs on every worker: the plain training loop of `pretrain`, in the process group that Ray set up."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.threads import threads_of_each
from cardialign.cluster.runs.failure import write_failure
from cardialign.cluster.runs.observer import RayObserver
from cardialign.cluster.runs.planned import planned
from cardialign.cluster.tracking.spool import append_line
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.plugins import collector_at_rest
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import ATTEMPTS, FAILURE, RESIZE, RESULT, STOP

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.2


def train_worker(settings: dict[str, Any]) -> None:
    """Train until done or asked to stop; rank 0 leaves `result.json`.

    A `UserError` is written to `failure.json` before it is raised: the driver ends the run on it. Anything else is a
    death that Ray Train answers with a restart, and the loop resumes from the newest verified checkpoint.
    """
    with collector_at_rest():
        import ray.train
        import torch

        from cardialign.pretrain.config import parse_config
        from cardialign.pretrain.training.loop import train

    logging.basicConfig(
        level=settings.get("log_level", logging.INFO),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    run_dir = Path(settings["run_dir"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    if (run_dir / FAILURE).exists():
        return  # another rank met an error that a restart cannot cure
    threads = threads_of_each(context.get_local_world_size(), settings["threads_asked"])
    torch.set_num_threads(threads)
    log.info("rank=%d threads=%d", rank, threads)
    if rank == 0:
        fence.check(run_dir)
        append_line(run_dir / ATTEMPTS, {"time": time.time(), "world_size": context.get_world_size()})
    try:
        result = train(
            parse_config(settings["config"]),
            run_dir,
            RayObserver(run_dir),
            on_step=planned(rank),
            resume=settings.get("resume", "same"),
        )
    except UserError as error:
        write_failure(run_dir, error, rank)
        raise
    if result.stopped:
        _await_successor(run_dir, rank, result.steps)
    if rank == 0:
        assert is_dataclass(result) and not isinstance(result, type)
        fence.check(run_dir)
        write_json(
            run_dir / RESULT,
            {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()},
            indent=1,
        )


def _await_successor(run_dir: Path, rank: int, step: int) -> None:
    """Stopped at a committed checkpoint so that a larger group may go on: say so, and wait to be ended.

    To return would be the end of the run. A stop that is asked for meanwhile is one.
    """
    request = run_dir / RESIZE
    while request.exists() and not (run_dir / STOP).exists():
        fence.check(run_dir)
        asked = read_json(request) if rank == 0 else None
        if asked is not None and "step" not in asked:
            log.info("action=await-successor step=%d", step)
            write_json(request, {**asked, "step": step}, indent=1)
        time.sleep(WAIT_SECONDS)
