"""What happens in every worker of a group before its process group is made, and in the controller that starts it.

Each worker proves that it sees the run directory, takes over the environment that the driver hands on, sends what it
prints to a file of the run directory, and leaves a note there that it renews while it lives. The group takes the run
directory from its predecessor (`cardialign.pretrain.run.fence`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.train import UserCallback
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

import cardialign
from cardialign.cluster.environment.handed_on import adopt
from cardialign.cluster.runs.deciding import keeper, stacks
from cardialign.cluster.runs.diagnosis import what_happened
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.watching.decisions import starts_of
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import write_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import DEATHS, LOGS, WORKERS
from cardialign.pretrain.run.moves import moves

BEAT_SECONDS = 5.0
PORT_TRIES = 3
"""Groups that may fail at setting up their process group, for example as another took the port, before the run ends."""
LONGEST_CAUSE = 400
"""Characters of what ended a group."""


@dataclass(frozen=True)
class Member:
    """What each worker of a group is told. environment: see `cardialign.cluster.environment.handed_on`."""

    run_dir: Path
    mark: fence.Mark
    world_size: int
    gpu: bool
    environment: dict[str, str] = field(repr=False)
    started: float = field(default_factory=time.time)

    @property
    def logs(self) -> Path:
        """The folder of this group's logs."""
        when = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.started))
        return self.run_dir / LOGS / f"{when}-{self.mark.group}"

    def log_of(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"


@dataclass
class GroupConfig(TorchConfig):
    """Ray's configuration of the process group, and what every worker is told before.

    start: the driver's mark of its start.
    """

    run_dir: str = ""
    start: str = ""
    gpu: bool = False
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def backend_cls(self) -> Any:
        return GroupBackend


class GroupBackend(_TorchBackend):
    """Lives in the controller, once per run: it numbers the groups."""

    groups = 0
    failed = 0

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Every worker enters the run, then Ray makes the process group.

        Raises UserError of the first worker that cannot enter: the run ends with it.
        """
        type(self).groups += 1
        mark = fence.Mark(backend_config.start, self.groups)
        size = len(worker_group)
        member = Member(Path(backend_config.run_dir), mark, size, backend_config.gpu, dict(backend_config.environment))
        problems = [worker_group.execute_single(0, enter, member, 0)]  # rank 0 first: it takes the run directory
        problems += ray.get([worker_group.execute_single_async(rank, enter, member, rank) for rank in range(1, size)])
        for problem in problems:
            if problem is not None:
                raise problem
        keeper.entered(backend_config.start, [worker.metadata.node_id for worker in worker_group.get_workers()])
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            type(self).failed += 1
            if self.failed >= PORT_TRIES:
                raise
            raise WorkerGroupStartupFailedError(str(error)) from error

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """The process group ends before its workers do, where all of them are there: Ray waits 30 s for one that is
        not, and a run that goes on elsewhere would wait with it."""
        if keeper.takes_leave(backend_config.start):
            super().on_shutdown(worker_group, backend_config)


class Deaths(UserCallback):
    """Lives in the controller: notes what ended a worker group, which its successor could not tell any more."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with contextlib.suppress(OSError):
            cause = shown(what_happened(worker_exceptions))[:LONGEST_CAUSE]
            told = {"time": time.time(), "cause": cause, "starts": starts_of(self.run_dir)}
            append_line(self.run_dir / DEATHS, told)


def enter(member: Member, rank: int) -> UserError | None:
    """In a worker, on its main thread: enter the run. Returns what keeps it out."""
    taken = adopt(member.environment)
    if not member.gpu:  # a node may have GPUs that this run was not given
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"})
    try:
        (fence.take_group if rank == 0 else fence.hold)(member.run_dir, member.mark)
        _print_to(member.log_of(rank))
        told = f"rank {rank} of {member.world_size}, process {os.getpid()} on {platform.node()}\n"
        told += f"package {cardialign.__file__}; taken over: {' '.join(taken) or 'nothing'}\n"
        os.write(2, told.encode())
        note = member.run_dir / WORKERS / f"rank-{rank}.json"
        note.parent.mkdir(exist_ok=True)
        note.with_suffix(".moved").touch()
        write_json(note, _note(member, rank), indent=1)
        stacks.offer(member.mark.label)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(
            f"host {platform.node()} cannot write into the run directory {member.run_dir}: {error.strerror or error}",
            "give a --run-dir that every node may write to, on storage with free space",
        )
    threading.Thread(target=_beat, args=(member.run_dir, note), name="sign-of-life", daemon=True).start()
    return None


def _note(member: Member, rank: int) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "rank": rank,
        "world_size": member.world_size,
        "started": time.time(),
        "group": member.mark.label,
        "log": str(member.log_of(rank).relative_to(member.run_dir)),
    }


def _print_to(path: Path) -> None:
    """Send stdout and stderr of this process, also what libraries and crashes write there, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"what follows is in {path} on {platform.node()}", flush=True)  # noqa: T201 - in Ray's own log of the worker
    with path.open("ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    faulthandler.enable(file=2)


def _beat(run_dir: Path, note: Path) -> None:
    """Renew the note while this process runs: one that is stopped, or cut off, falls silent. And say beside it whether
    the loop has moved, which a thread that beats says not; a full disk takes both."""
    before = moves()
    while not fence.fenced_out(run_dir):
        with contextlib.suppress(OSError):
            os.utime(note)
            if (now := moves()) != before:
                before = now
                os.utime(note.with_suffix(".moved"))
        time.sleep(BEAT_SECONDS)
