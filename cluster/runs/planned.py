"""Faults that a drill plants inside a worker: at a step, in the middle of one, or at a write point of a checkpoint.

Off, it costs one look into the environment when a worker starts. On, CARDIALIGN_DRILL names a folder, on storage that
every worker sees, with `plan.json`; each fault happens once, however often the run starts: its mark lies beside the
plan. `stepped-RANK.jsonl` there says when a rank finished which step, so that a drill can tell what was lost.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cardialign.data_shards.files import parse_json, read_json_object
from cardialign.pretrain.run.files import CHECKPOINTS

FOLDER = "CARDIALIGN_DRILL"
PLAN = "plan.json"
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
"""What Python tells its audit hooks of files. What C++ or Rust open by themselves lies between two of these."""

WAKE = "import os, signal, sys, time; time.sleep(float(sys.argv[1])); os.kill(int(sys.argv[2]), signal.SIGCONT)"


@dataclass(frozen=True)
class Fault:
    """One fault of rank `rank`, once step `step` is done.

    kind: "stand", the loop itself stands still for good while its process lives; "nan", in the next step whatever a
    module of this rank gives is NaN; "slow", from then on each read from `file` takes `seconds`.
    after: seconds from there into the next step. write: instead at the so many-th time that the process touches a file
    of its checkpoints. seconds: how long a stopped process stays stopped; 0, for good.
    """

    kind: Literal["kill", "stop", "stand", "nan", "slow"]
    step: int
    rank: int = 0
    after: float = 0.0
    write: int | None = None
    seconds: float = 0.0
    file: str = ""


def write_plan(folder: Path, faults: tuple[Fault, ...] = (), pace: float = 0.0) -> None:
    """The plan of a drill. pace: seconds that each step takes at least, so that it can be hit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text(json.dumps({"pace": pace, "faults": [asdict(each) for each in faults]}))


def plan_of(run_dir: Path) -> Path:
    """Where the plan of faults of a run lies."""
    return run_dir.with_name(f"{run_dir.name}.plan")


def mark_of(folder: Path, number: int) -> Path:
    """Lies there, with the time, once fault `number` of a plan has been set."""
    return folder / f"fault-{number}.json"


def stepped(folder: Path, rank: int = 0) -> list[tuple[float, int]]:
    """(time, step) of every step that a rank has finished, repeated ones as often as they were done."""
    try:
        lines = (folder / f"stepped-{rank}.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError):  # a line that is being written
            values = parse_json(line)
            found.append((float(values["time"]), int(values["step"])))
    return found


def machine_time() -> float:
    """Unix time, whatever a drill has made of `time.time` in this process."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def planned(rank: int, environment: Mapping[str, str] = os.environ) -> Callable[[int], None] | None:
    """What is to be called after each step of this worker; None, as ever, when no drill is on."""
    return _Planned(Path(environment[FOLDER]), rank).after_step if environment.get(FOLDER) else None


class _Planned:
    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        values = read_json_object(folder / PLAN)
        self.pace = float(values["pace"])
        faults = [Fault(**each) for each in values["faults"]]
        self.faults = {number: each for number, each in enumerate(faults) if each.rank == rank}
        self.waiting, self.armed = set(self.faults), set[int]()
        self.touched = 0
        self.spoilt: Any = None
        self.begun = time.monotonic()
        if any(each.write is not None for each in self.faults.values()):
            sys.addaudithook(self._audit)

    def after_step(self, done: int) -> None:
        time.sleep(max(0.0, self.pace - (time.monotonic() - self.begun)))
        with (self.folder / f"stepped-{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"time": machine_time(), "step": done, "touched": self.touched}) + "\n")
        if self.spoilt is not None:
            self.spoilt.remove()
            self.spoilt = None
        for number in sorted(self.waiting):
            fault = self.faults[number]
            if done < fault.step:
                continue
            self.waiting.remove(number)
            if mark_of(self.folder, number).exists():
                continue
            if fault.write is not None:
                self.touched = 0
                self.armed.add(number)
            elif fault.after > 0 and fault.kind not in ("stand", "nan", "slow"):
                threading.Timer(fault.after, self._set, (number,)).start()
            else:
                self._set(number)
        self.begun = time.monotonic()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or event not in WRITES or f"/{CHECKPOINTS}/" not in str(arguments[0]):
            return
        self.touched += 1
        for number in sorted(self.armed):
            if self.touched >= (self.faults[number].write or 0):
                self.armed.discard(number)
                self._set(number)

    def _set(self, number: int) -> None:
        fault = self.faults[number]
        mark = mark_of(self.folder, number)
        try:
            with mark.open("x") as file:
                json.dump({"time": machine_time(), "pid": os.getpid(), "touched": self.touched}, file)
        except FileExistsError:
            return
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "stand":
            threading.Event().wait()
        if fault.kind == "nan":
            self.spoilt = _not_a_number()
            return
        if fault.kind == "slow":
            _slow_down(fault.file, fault.seconds)
            return
        if fault.seconds > 0:  # a process that is stopped cannot wake itself
            words = [sys.executable, "-S", "-c", WAKE, str(fault.seconds), str(os.getpid())]
            subprocess.Popen(words, start_new_session=True)  # noqa: S603 - a program of ours and two numbers
        os.kill(os.getpid(), signal.SIGSTOP)


def _slow_down(name: str, seconds: float) -> None:
    """Every read of this process from a file of that name takes so long."""
    plain = os.pread

    def slowly(descriptor: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{name}"):
            time.sleep(seconds)
        return plain(descriptor, size, offset)

    os.pread = slowly


def _not_a_number() -> Any:
    """Whatever a module of this process gives is NaN until the handle is removed."""
    import torch
    from torch.nn.modules.module import register_module_forward_hook

    def spoil(module: Any, given: Any, output: Any) -> Any:
        floats = isinstance(output, torch.Tensor) and output.is_floating_point()
        return output * math.nan if floats else output

    return register_module_forward_hook(spoil)
