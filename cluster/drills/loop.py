"""The training loop alone, in processes of this machine: what a drill can start again in a second.

Each rank is a fork of a server that has imported torch and DeepSpeed once. When one dies the others are ended, as Ray
does; a drill starts the run again by itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.drills.patience import Patience
from cardialign.cluster.runs.planned import FOLDER, planned
from cardialign.data_shards.errors import FAILED, STOPPED, UserError
from cardialign.data_shards.files import read_json_object
from cardialign.pretrain.run.lock import locked_run
from cardialign.pretrain.run.observer import NullObserver

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

PRELOAD = [
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "cardialign.cluster.drills.loop",
    "cardialign.pretrain.training.loop",
]


@dataclass(frozen=True)
class Ended:
    """How a start of the loop ended: exit code of each rank (negative: by that signal) and what the first one said."""

    codes: tuple[int, ...]
    said: str
    seconds: float
    at: float

    @property
    def done(self) -> bool:
        return all(code == 0 for code in self.codes)


class Loop:
    """One start of `config` in `run_dir`, on `world` processes of this machine.

    plan: folder with the faults planned for it (`cluster.runs.planned`). limits: of its processes (`_limit`). until: so
    many steps are done, then it is asked to stop. threads: of torch, on each rank.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, *, world: int = 1, plan: Path | None = None,
        limits: Mapping[str, int] | None = None,
        until: int | None = None, threads: int = 1, locked: bool = True,
    ) -> None:  # fmt: skip
        self.folder = Path(tempfile.mkdtemp(prefix="drill-"))
        self.started = time.monotonic()
        variables = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
        variables |= {FOLDER: "" if plan is None else str(plan)}
        told = {**(limits or {}), "threads": threads} | ({} if until is None else {"until": until})
        told["locked"] = int(locked)
        self.processes = []
        for rank in range(world):
            own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (config.resolved(), str(run_dir), str(self.folder), own, told)
            process = _context().Process(target=_rank, args=arguments)
            process.start()
            self.processes.append(process)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return all(each.exitcode is not None for each in self.processes)

    def signal(self, number: int, rank: int = 0) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def wait(self, seconds: float = 120.0) -> Ended:
        """Until all ranks have ended; those that are left when one has died are killed, as are all at the deadline."""
        patience = Patience(seconds)
        try:
            while running := [each for each in self.processes if each.exitcode is None]:
                wait([each.sentinel for each in running], timeout=0.5)
                if patience.over() or any(each.exitcode for each in self.processes):
                    wait([each.sentinel for each in running], timeout=0.3)
                    break
            at = time.time()
        finally:
            self.close()
        told = [read_json_object(path) for path in sorted(self.folder.glob("rank-*.json"))]
        first = min(told, key=lambda each: float(each["time"]), default={"said": ""})
        codes = tuple(int(each.exitcode or 0) for each in self.processes)
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
        return Ended(codes, str(first["said"]), time.monotonic() - self.started, at)

    def close(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
            process.join()


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class _Asked(NullObserver):
    """SIGTERM asks for a stop at the next step, as under torchrun; so does the number of steps that are to be done."""

    def __init__(self, until: int | None = None) -> None:
        self.asked, self.left = False, until
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def should_stop(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.asked or (self.left is not None and self.left < 0)


def _rank(values: dict[str, Any], run_dir: str, folder: str, variables: dict[str, str], limits: dict[str, int]) -> None:
    """What a rank does; ends with the exit code of the command line, and leaves what it would have said."""
    os.environ.update(variables)
    rank, world = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    code, said = FAILED, ""
    try:
        import torch

        from cardialign.pretrain.config import parse_config
        from cardialign.pretrain.training.loop import train

        torch.set_num_threads(limits["threads"])
        log = Path(variables[FOLDER] or folder) / f"rank-{rank}.log"  # beside the faults, not on a disk that is spoilt
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        _limit(limits)
        if world > 1:
            torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
        with locked_run(Path(run_dir)) if rank == 0 and limits["locked"] else contextlib.nullcontext():
            result = train(parse_config(values), Path(run_dir), _Asked(limits.get("until")), on_step=planned(rank))
        code = STOPPED if result.stopped else 0
    except UserError as error:
        code, said = error.exit_code, str(error)
    except BaseException:
        said = traceback.format_exc()
    with contextlib.suppress(OSError):
        (Path(folder) / f"rank-{rank}.json").write_text(json.dumps({"time": time.time(), "said": said}))
    os._exit(code)  # at once: peers must not wait for one that takes its process group down


def _limit(limits: Mapping[str, int]) -> None:
    """Limits of this process, as `ulimit` knows them: the largest file that it may write, in bytes."""
    import resource

    if "file_bytes" in limits:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG instead of the end of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], limits["file_bytes"]))
