"""Whether a run can be made again: from one of its own checkpoints, in a scratch folder, and compared bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.traces import first_difference
from cardialign.cluster.environment.threads import threads_asked, threads_of_each
from cardialign.data_shards.errors import DONE, FAILED, UsageError, UserError
from cardialign.data_shards.files import parse_json, read_json
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.run.files import ATTEMPTS, METRICS, QUARANTINE, WORKERS
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.condition import examine, verify
from cardialign.pretrain.training.checkpoints.files import WEIGHTS, committed, committed_path
from cardialign.pretrain.training.checkpoints.state import TrainerState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What of a run is made again: the steps behind a checkpoint, up to `to`, as `recorded`."""

    checkpoint: Path
    state: TrainerState
    to: int
    recorded: list[dict[str, Any]]


def audit(run_dir: Path, scratch: Path, start: int | None = None, steps: int | None = None) -> dict[str, Any]:
    """Resume from a verified checkpoint in `scratch` and train to a later recorded step; `equal`, or the first
    difference.

    start: step of the checkpoint (default: the newest one with recorded steps behind it). steps: how many are made
    again (default: up to the next checkpoint, else all that are recorded). Trace and digest are compared, and where the
    run has a checkpoint of the last step, its weights. Nothing in `run_dir` is changed. Raises UserError when there is
    nothing to compare, or the run cannot be made again here.
    """
    part = choose(run_dir, start, steps)
    world, threads = part.state.world_size, threads_of_each(part.state.world_size, threads_asked())
    copy = scratch / "run"
    target = committed_path(copy, part.state.step)
    target.parent.mkdir(parents=True)
    shutil.copytree(part.checkpoint, target)
    kept = [line for line in read_trace(run_dir) if line["step"] <= part.state.step]
    (copy / METRICS).write_text("".join(json.dumps(line) + "\n" for line in kept))
    if (run_dir / QUARANTINE).is_file():
        shutil.copyfile(run_dir / QUARANTINE, copy / QUARANTINE)
    config = parse_config(part.state.config, f"configuration of {part.checkpoint}")
    ended = Loop(config, copy, world=world, until=part.to - part.state.step, threads=threads).wait(seconds=24 * 3600.0)
    if any(code not in (0, 75) for code in ended.codes):
        problem, _, remedy = ended.said.partition("\n  remedy: ")
        raise UserError(
            f"the run could not be made again from {part.checkpoint}: {problem.strip() or ended.codes}",
            remedy or "bring back what it was trained on, at the place where its configuration has it",
        )
    made = [line for line in read_trace(copy) if line["step"] > part.state.step]
    difference = first_difference(made, part.recorded, "recorded") or _weights_differ(run_dir, copy, part.to)
    return {
        "run_dir": str(run_dir),
        "from_step": part.state.step,
        "to_step": part.to,
        "equal": difference is None,
        "difference": difference,
        "weights_compared": _weights(run_dir, part.to) is not None,
        "topology": f"{world} processes with {threads} threads each, on {platform.node()}",
        "other_topologies": other_topologies(run_dir, world),
        "exit_code": DONE if difference is None else FAILED,
    }


def choose(run_dir: Path, start: int | None, steps: int | None) -> Part:
    """Which steps are made again. Raises UserError when none can be."""
    trace = read_trace(run_dir)
    every = committed(run_dir)
    if not every:
        raise UserError(f"{run_dir} holds no committed checkpoint", "audit a run that has written one")
    last = max((int(line["step"]) for line in trace), default=0)
    known = [step for step, _ in every]
    if start is None:
        usable = [(step, path) for step, path in every if step < last and examine(path).condition == "verified"]
        if not usable:
            raise UserError(
                f"no verified checkpoint of {run_dir} has recorded steps behind it: checkpoints "
                f"{', '.join(map(str, known))}, {METRICS} ends at step {last}",
                "audit while the run goes on, or keep more checkpoints: training.keep_checkpoints",
            )
        start, path = usable[-1]
    elif start not in known:
        raise UsageError(f"--from {start}: {run_dir} has checkpoints of {', '.join(map(str, known))}", "name one")
    else:
        path = committed_path(run_dir, start)
    verify(path)
    later = [step for step in known if step > start]
    to = min(last, start + steps if steps is not None else later[0] if later else last)
    recorded = [line for line in trace if start < line["step"] <= to]
    if not recorded:
        raise UserError(f"{METRICS} of {run_dir} records no step behind {start}", "name an earlier one with --from")
    return Part(path, TrainerState.read(path), to, recorded)


def _weights(run_dir: Path, step: int) -> str | None:
    """Digest of the weights in the checkpoint of a step; None where there is none."""
    with contextlib.suppress(OSError):
        return hashlib.sha256((committed_path(run_dir, step) / WEIGHTS).read_bytes()).hexdigest()
    return None


def _weights_differ(run_dir: Path, copy: Path, step: int) -> str | None:
    mine, recorded = _weights(copy, step), _weights(run_dir, step)
    if recorded is None or mine == recorded:
        return None
    return f"step {step}, {WEIGHTS}: sha256 {str(mine)[:12]}, recorded {recorded[:12]}"


def other_topologies(run_dir: Path, world: int) -> str | None:
    """What the run says of other numbers of workers or hosts than those it is made again on; None when nothing."""
    said = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        starts = [parse_json(line)["world_size"] for line in (run_dir / ATTEMPTS).read_text().splitlines()]
        others = sorted({int(each) for each in starts} - {world})
        said += [f"it has also run on {each} workers: there losses agree to rounding only" for each in others]
    hosts = [str((read_json(path) or {}).get("host")) for path in sorted((run_dir / WORKERS).glob("rank-*.json"))]
    elsewhere = sorted({host for host in hosts if host != platform.node()})
    if elsewhere:
        said.append(f"it ran on {', '.join(elsewhere)}: another processor may round in another way")
    return "; ".join(said) or None
