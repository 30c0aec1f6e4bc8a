"""`cardialign pretrain` as a user starts it: a process of its own, with faults planned inside its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.outcome import BrokenError, SkippedError
from cardialign.cluster.drills.patience import Patience
from cardialign.cluster.environment.versions import source_root
from cardialign.cluster.runs.planned import FOLDER, PLAN, plan_of, stepped, write_plan
from cardialign.data_shards.files import parse_json

PATIENCE = 600.0
"""Seconds of a free machine in which a run of seconds has ended."""
NO_RAY = "a local Ray could not be started"


@dataclass(frozen=True)
class Around:
    """Of a command: further variables, folders of modules that come before all others, and words before its own."""

    environment: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[Path, ...] = ()
    under: tuple[str, ...] = ()


class Pretrain:
    """One start of the command. What it says is kept beside the run directory. around: what is special about it."""

    def __init__(
        self, recipe: Path, run_dir: Path, tracking: Path, words: Sequence[str], workers: int | str,
        around: Around | None = None,
    ) -> None:  # fmt: skip
        self.run_dir, self.plan = run_dir, plan_of(run_dir)
        tracking.mkdir(exist_ok=True)
        if not (self.plan / PLAN).exists():
            write_plan(self.plan)
        own = ["pretrain", "--recipe", str(recipe), "--run-dir", str(run_dir), "--workers", str(workers)]
        if "--tracking-uri" not in words:
            own += ["--tracking-uri", f"sqlite:///{tracking / 'mlflow.db'}"]
        around = around or Around()
        environment = {**own_environment(around.modules), **around.environment, FOLDER: str(self.plan)}
        self.out = run_dir.with_name(f"{run_dir.name}.{time.time_ns()}.out")
        self.started = time.time()
        with self.out.open("w") as out, self.out.with_suffix(".err").open("w") as said, _hears_ctrl_c():
            self.process = subprocess.Popen(  # noqa: S603 - our own program, words of a drill
                [*around.under, sys.executable, "-m", "cardialign", *own, *words, "--json"],
                env=environment, stdout=out, stderr=said, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.out.with_suffix(".err").read_text(errors="replace")

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object that the command ended with; {} when there is none."""
        with contextlib.suppress(IndexError, ValueError):
            return dict(parse_json(self.out.read_text().strip().splitlines()[-1]))
        return {}

    def until(self, holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
        """Wait until something `holds` while the command runs; when that was seen. Raises BrokenError otherwise."""
        patience = Patience(seconds)
        while not holds():
            if self.process.poll() is not None:
                self._check_ray()
                raise BrokenError(f"the command ended with {self.process.returncode} before {what}: {self._last()}")
            if patience.over():
                self.end()
                raise BrokenError(f"{what} did not come within {seconds:.0f} s: {self._last()}")
            time.sleep(0.02)
        return time.time()

    def until_step(self, step: int) -> float:
        """Wait until the run has finished `step` since this start."""
        return self.until(
            lambda: any(at > self.started and done >= step for at, done in stepped(self.plan)), f"step {step}"
        )

    def until_step_again(self, at: float) -> float:
        """Wait until the run has finished any step since `at`."""
        return self.until(lambda: any(when > at for when, _ in stepped(self.plan)), "a step after it")

    def signal(self, number: int) -> float:
        """Send the command a signal; when."""
        at = time.time()
        self.process.send_signal(number)
        return at

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code. Raises BrokenError, and ends the command, when it goes on for longer than `seconds`."""
        patience = Patience(seconds)
        while not patience.over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=0.5)
        self.end()
        raise BrokenError(f"the command did not end within {seconds:.0f} s: {self._last()}")

    def finished(self, code: int = 0) -> dict[str, Any]:
        """The answer of the command once it has ended with `code`. Raises BrokenError otherwise."""
        found = self.wait()
        if found != code:
            self._check_ray()
            raise BrokenError(f"the command ended with {found} instead of {code}: {self._last()}")
        return self.answer

    def end(self) -> None:
        """Whatever it does: end it, in order if it will."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=10)

    def _check_ray(self) -> None:
        """Raises SkippedError where no Ray came up: a busy machine says nothing of the promise."""
        problem = str(self.answer.get("problem", ""))
        if problem.startswith(NO_RAY):
            raise SkippedError(f"not tried: {problem}")

    def _last(self) -> str:
        problem = self.answer.get("problem")
        return str(problem) if problem else " ".join(self.said.strip().splitlines()[-3:])[:600]


def own_environment(first: Sequence[Path] = ()) -> dict[str, str]:
    """Of a process that runs this package, from wherever it was started. first: folders with modules before it."""
    path = os.pathsep.join(filter(None, [*map(str, first), str(source_root()), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@contextlib.contextmanager
def _hears_ctrl_c() -> Iterator[None]:
    """A process that is started in here hears SIGINT, though this one, in the background of a shell, does not."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
