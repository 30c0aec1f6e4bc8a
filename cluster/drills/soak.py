"""Many random faults against one run, from a seed: it has to end as if there had been none.

kill     SIGKILL in the middle of a step, or at a write point of a checkpoint; the run is started again
stop     SIGSTOP for a moment
flip     a bit of a file of the newest checkpoint, while another sound one is there
outage   the folder of the shards cannot be reached for a moment; a run that ends with it is started again
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cardialign.cluster.drills.ground import EVERY, Ground
from cardialign.cluster.drills.loop import Ended, Loop
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import Fault, plan_of, stepped, write_plan
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import committed

Kind = Literal["kill", "stop", "flip", "outage"]
KINDS: tuple[Kind, ...] = ("kill", "kill", "kill", "stop", "flip", "outage")
"""How often each is drawn."""
FARTHEST, WRITES = 2 * EVERY + 3, 40
AWAY_SECONDS = 0.4


@dataclass(frozen=True)
class RandomFault:
    """ahead: steps from where the run goes on; part, place: which file and byte, or when in a step, each in [0, 1).

    write: a kill at the so many-th touch of a checkpoint's files instead of in a step.
    """

    kind: Kind
    ahead: int
    part: float
    place: float
    write: int | None = None


def random_faults(number: int, seed: int) -> list[RandomFault]:
    """The same faults for the same seed; a shorter list is the beginning of a longer one."""
    draw = random.Random(seed)  # noqa: S311 - a drill can be repeated
    found = []
    for _ in range(number):
        kind = draw.choice(KINDS)
        write = draw.randint(1, WRITES)
        whether = draw.random() < 0.4
        at = (draw.randint(1, FARTHEST), draw.random(), draw.random())
        found.append(RandomFault(kind, *at, write if kind == "kill" and whether else None))
    return found


def steps_for(number: int) -> int:
    """Steps of a run that so many faults do not outlast, nor it them by far."""
    return max(4 * EVERY, 2 * number)


def soak(ground: Ground, number: int, say: Callable[[str], None]) -> Outcome:
    """Set `number` faults against one run. Raises BrokenError when it cannot go on, or ends as another one."""
    steps = steps_for(number)
    config = ground.config(f"training.steps={steps}", f"training.checkpoint_every={EVERY}")
    alone, run_dir, outcome = ground.run_dir("undisturbed"), ground.run_dir("soak"), Outcome()
    started = time.monotonic()
    _must(Loop(config, alone).wait(600.0 + steps))
    faults, told, starts = random_faults(number, ground.seed), Counter[str](), 0
    while faults:
        now, faults = _of_one_start(faults)
        told.update(each.kind for each in now)
        starts += 1
        _start(ground, run_dir, steps, starts, now)
        if starts % 20 == 0:
            say(f"{number - len(faults)} of {number} faults, step {_newest(run_dir)} of {steps}")
    plan = plan_of(run_dir) / "last"
    write_plan(plan)
    _must(Loop(config, run_dir, plan=plan).wait(600.0 + steps))
    from cardialign.pretrain.run.trace import read_trace

    judge_trace(outcome, run_dir, read_trace(alone))
    done = sum(len(stepped(path.parent)) for path in plan_of(run_dir).glob("*/plan.json"))
    outcome.lost = done - steps
    counts = ", ".join(f"{told[kind]} {kind}" for kind in dict.fromkeys(KINDS))
    outcome.note = (
        f"{number} faults ({counts}) over {starts + 1} starts of a run of {steps} steps in "
        f"{time.monotonic() - started:.0f} s: trace and digest are those of the undisturbed run"
    )
    return outcome


def _of_one_start(faults: Sequence[RandomFault]) -> tuple[list[RandomFault], list[RandomFault]]:
    """The faults up to the first that ends a start, and those after."""
    for count, each in enumerate(faults, start=1):
        if each.kind in ("kill", "outage"):
            return list(faults[:count]), list(faults[count:])
    return list(faults), []


def _start(ground: Ground, run_dir: Path, steps: int, number: int, faults: Sequence[RandomFault]) -> None:
    """One start of the run and its faults: flips before it, stops and the last one while it trains."""
    for each in faults:
        if each.kind == "flip":
            _flip(run_dir, each)
    newest, plan, last = _newest(run_dir), plan_of(run_dir) / f"{number:05d}", faults[-1]

    def step(each: RandomFault) -> int:
        return min(newest + each.ahead, steps - 1)

    end = step(last)
    planned = [
        Fault("stop", min(step(each), end), after=0.02 * each.part, seconds=0.05 + 0.2 * each.place)
        for each in faults
        if each.kind == "stop"
    ]
    kill = Fault("kill", end, after=0.03 * last.part)
    if last.write is not None:  # a step that is not the run's last is saved behind it
        planned.append(replace(kill, write=last.write, after=0.0))
        kill = replace(kill, step=min(end + EVERY, steps - 1))
    if last.kind != "outage":
        planned.append(kill)
    else:
        planned.append(replace(kill, step=min(end + EVERY, steps - 1)))
    write_plan(plan, tuple(planned))
    config = ground.config(f"training.steps={steps}", f"training.checkpoint_every={EVERY}")
    loop = Loop(config, run_dir, plan=plan)
    if last.kind == "outage":
        _away(ground.shards, loop, plan, end, last.place)
    ended = loop.wait()
    if ended.codes == (-9,):
        return
    away = last.kind == "outage" and ended.codes == (1,) and str(ground.shards) in ended.said
    if not away:
        raise BrokenError(f"start {number} of the run ended with {ended.codes}: {ended.said}; its faults: {faults}")


def _away(shards: Path, loop: Loop, plan: Path, step: int, place: float) -> None:
    """Take the shards away for a moment: while the run starts, or once it has finished `step`."""
    deadline = time.monotonic() + 60
    while place > 0.3 and not any(done >= step for _, done in stepped(plan)):
        if time.monotonic() > deadline or loop.ended:
            return
        time.sleep(0.005)
    hidden = shards.with_name("away")
    shards.rename(hidden)
    try:
        time.sleep(AWAY_SECONDS)
    finally:
        hidden.rename(shards)


def _flip(run_dir: Path, fault: RandomFault) -> None:
    """Flip a bit of the newest checkpoint, unless it would be the last sound one."""
    sound = [path for _, path in committed(run_dir) if examine(path).condition == "verified"]
    if len(sound) < 2:
        return
    files = sorted(path for path in sound[-1].rglob("*") if path.is_file())
    path = files[int(fault.part * len(files))]
    content = bytearray(path.read_bytes())
    content[int(fault.place * len(content))] ^= 1 << fault.ahead % 8
    path.write_bytes(content)


def _newest(run_dir: Path) -> int:
    found = [step for step, path in committed(run_dir) if examine(path, quick=True).condition == "verified"]
    return max(found, default=0)


def _must(ended: Ended) -> None:
    if not ended.done:
        raise BrokenError(f"the run ended with {ended.codes}: {ended.said}")
