"""A disk of its own for a run directory: small enough to be filled, and ours to make read-only."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.drills.traces import judge_trace, judge_way_back
from cardialign.cluster.runs.planned import plan_of, stepped, write_plan
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import TEMPORARY, checkpoints_folder, committed

MEGABYTES = 8
"""Room for the tiny run many times over."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs mounted at `folder`. Raises SkippedError where this user may mount none."""
    folder.mkdir(parents=True)
    try:
        mount("-t", "tmpfs", "-o", f"size={MEGABYTES}m", "drill", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        raise SkippedError(f"a disk of its own needs root: {_why(error)}") from None
    try:
        yield folder
    finally:
        subprocess.run([_program("umount"), "--lazy", str(folder)], check=False, capture_output=True)  # noqa: S603 - ours


def mount(*words: str) -> None:
    subprocess.run([_program("mount"), *words], check=True, capture_output=True, text=True)  # noqa: S603 - words of a drill


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"this machine has no `{name}`")
    return found


def _why(error: OSError | subprocess.CalledProcessError) -> str:
    return str(error if isinstance(error, OSError) else error.stderr.strip())


def spoilt_and_mended(
    ground: Ground, name: str, spoil: Callable[[Path], None], mend: Callable[[Path], None], word: str
) -> Outcome:
    """Spoil the disk under a run, and mend it once the run has ended or finished.

    The run may go on as far as it can; where it ends it says `word` and a way out, and every checkpoint that was
    committed stays whole. With the disk mended the same start ends as the undisturbed run.
    """
    outcome = Outcome()
    plan = plan_of(ground.run_dir(name))
    write_plan(plan, pace=PACE)
    with small_disk(plan.with_name(f"{name}-disk")) as disk:
        run_dir = disk / "run"
        with Loop(ground.config(), run_dir, plan=plan) as loop:
            step = ground.step()
            while not any(done >= step for _, done in stepped(plan)):
                if loop.ended:
                    raise BrokenError(f"the run ended before the fault: {loop.wait()}")
                time.sleep(0.01)
            before = [path.name for _, path in committed(run_dir)]
            at = time.time()
            spoil(disk)
            ended = loop.wait()
        outcome.detected = ended.at - at
        require(ended.codes == (1,), f"the run ended with {ended.codes}: {ended.said}")
        require(word in ended.said and "remedy" in ended.said, f"it names neither {word} nor a way out: {ended.said}")
        found = [examine(path) for _, path in committed(run_dir)]
        require(bool(found) and all(each.condition == "verified" for each in found), f"checkpoints: {found}, {before}")
        mend(disk)
        mended = time.time()
        last = Loop(ground.config(), run_dir, plan=plan).wait()
        require(last.done, f"on the mended disk the run did not go on: {last.said}")
        judge_trace(outcome, run_dir, ground.undisturbed())
        left = list(checkpoints_folder(run_dir).glob(f"{TEMPORARY}*"))
        require(not left, f"left behind: {left}")
        judge_way_back(outcome, plan, mended)
        require((outcome.lost or 0) <= MOST_LOST, f"{outcome.lost} steps were done again")
    problem = ended.said.splitlines()[0].replace(str(ground.folder), "...")
    outcome.note = f"back after the disk was mended; {problem[:160]}"
    return outcome


def fill(disk: Path) -> None:
    """Take every byte that is free."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()
    require(shutil.disk_usage(disk).free == 0, "the disk could not be filled")
