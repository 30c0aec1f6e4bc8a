"""Evaluation beside the training: a Ray actor with resources of its own looks at each committed checkpoint.

It speaks with nobody. It reads the run directory and writes a line of `evaluations.jsonl` for each checkpoint, which
the driver replays to MLflow, and `best/`. A worker that dies, or a run that is resumed, goes on from these files;
nothing that happens here slows, stops or fails the training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.handed_on import adopt, handed_on
from cardialign.cluster.tracking.spool import SpoolReader, append_line
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.config import EvaluationConfig, RunConfig, parse_config
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import BEST, BEST_NOTE, EVALUATIONS, LOGS
from cardialign.pretrain.run.integrity import folder_beside, replace_export
from cardialign.pretrain.training.checkpoints.files import MANIFEST, committed

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
NICENESS = 10
LIVES = 3
"""Of the worker beside its first: a checkpoint that kills it each time is left for the next start."""
LOOK_SECONDS = 5.0
MOST_LINES = 10**6
PREFIX = "evaluation/"
LOG = "evaluations.log"


@dataclass(frozen=True)
class Waiting:
    """A committed checkpoint that nobody has looked at. mark: digest of its manifest, by which it is known again."""

    step: int
    path: Path
    mark: str


def waiting(run_dir: Path, every: int, ended: bool = False) -> list[Waiting]:
    """Checkpoints that `evaluations.jsonl` does not name, oldest first: those whose step is a multiple of `every`, and
    the newest of a run that has ended."""
    there = committed(run_dir)
    lines = SpoolReader(run_dir / EVALUATIONS, once_per_step=False).read(MOST_LINES)
    known = {(line.step, line.values.get("checkpoint")) for line in lines}
    found = []
    for step, path in there:
        mark = (read_json(path / MANIFEST) or {}).get("self")
        due = step % every == 0 or (ended and step == there[-1][0])
        if due and isinstance(mark, str) and (step, mark) not in known:
            found.append(Waiting(step, path, mark))
    return found


def look_beside(run_dir: Path, config: RunConfig, over: Callable[[], bool], poll: float = POLL_SECONDS) -> int:
    """Look at every checkpoint of the run until `over` and nothing waits; returns how many were looked at.

    Whatever goes wrong with one is written into its line. Raises UserError for records or words that cannot be opened.
    """
    from cardialign.pretrain.evaluation.selection.of_checkpoint import asked_of

    wanted = config.evaluation
    assert wanted is not None
    asked, looked, every = asked_of(config), 0, wanted.every * config.training.checkpoint_every
    while not fence.fenced_out(run_dir):
        last_round = over()
        queue = waiting(run_dir, every, last_round)
        for each in queue[: -wanted.most_waiting]:
            _write(
                run_dir, each, {"skipped": f"{len(queue)} checkpoints waited, the newest {wanted.most_waiting} stay"}
            )
        if queue:
            each = queue[-wanted.most_waiting :][0]
            _write(run_dir, each, _looked_at(run_dir, each, wanted, asked))
            looked += 1
        elif last_round:
            break
        else:
            time.sleep(poll)
    return looked


def _looked_at(run_dir: Path, each: Waiting, wanted: EvaluationConfig, asked: Any) -> dict[str, Any]:
    """The figures of a checkpoint as a line has them; the encoder is kept when it is the best so far."""
    from cardialign.pretrain.evaluation.selection.of_checkpoint import figures_of_checkpoint
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.loaded import load_encoder

    scratch = Path(tempfile.mkdtemp(prefix="cardialign-evaluation-"))
    try:
        folder = scratch / "encoder"
        exported = export_run(run_dir, folder, step=each.step, program=False)
        encoder = load_encoder(folder)
        found = figures_of_checkpoint(encoder, asked)
        value = found.figures.get(wanted.criterion)
        note = {"step": each.step, "checkpoint": each.mark, "criterion": wanted.criterion, "value": value}
        if value is not None and better(value, read_json(run_dir / BEST_NOTE), wanted.criterion):
            _keep(run_dir, folder, {**note, "digest": exported["digest"]})
        line = {metric_of(name): figure for name, figure in found.figures.items()}
        for name, ends in found.intervals.items():
            line |= {f"{metric_of(name)}/{end}": limit for end, limit in zip(("low", "high"), ends, strict=True)}
        told = {f"{PREFIX}records": found.records, f"{PREFIX}seconds": round(found.seconds, 3)}
        return {**line, **told, "reasons": found.reasons}
    except (UserError, OSError) as error:
        reason = error.problem if isinstance(error, UserError) else str(error)
        log.warning("evaluation=failed step=%d reason=%s", each.step, reason)
        return {"failed": reason}
    except Exception as error:  # a defect of an evaluation is no reason to look at no further checkpoint
        log.exception("evaluation=failed step=%d", each.step)
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def metric_of(criterion: str) -> str:
    """The name of a figure in `evaluations.jsonl` and MLflow: `evaluation/probe/super` of `probe:super`; a file of
    prompts by its name without folder and ending."""
    kind, colon, name = criterion.partition(":")
    return f"{PREFIX}{kind}/{Path(name).stem if name.endswith(('.yaml', '.yml')) else name}" if colon else PREFIX + kind


def better(value: float, best: dict[str, Any] | None, criterion: str) -> bool:
    """Whether a figure is above that of the note; of equals the earlier stays. A note of another criterion is none."""
    known = (best or {}).get("value")
    if best is None or best.get("criterion") != criterion or not isinstance(known, int | float):
        return True
    return value > known


def _keep(run_dir: Path, folder: Path, note: dict[str, Any]) -> None:
    fence.check(run_dir)
    with folder_beside(run_dir / BEST) as beside:
        fresh = beside / "new"
        shutil.copytree(folder, fresh)
        replace_export(fresh, run_dir / BEST, beside)
    write_json(run_dir / BEST_NOTE, note, indent=1)


def _write(run_dir: Path, each: Waiting, figures: dict[str, Any]) -> None:
    fence.check(run_dir)
    append_line(run_dir / EVALUATIONS, {"step": each.step, "time": time.time(), "checkpoint": each.mark, **figures})


class Worker:
    """What the Ray actor is: `run` in one thread, `finish` in another."""

    def __init__(self, config: dict[str, Any], run_dir: str, environment: dict[str, str], mark: fence.Mark) -> None:
        adopt(environment)
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"})
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
        self.config, self.run_dir, self.mark = parse_config(config), Path(run_dir), mark
        self.over = threading.Event()

    def run(self) -> int:
        """Look until the training is over; returns how many checkpoints were looked at. Raises as `look_beside`."""
        import torch

        wanted = self.config.evaluation
        assert wanted is not None
        torch.set_num_threads(wanted.cpus)
        fence.hold_start(self.run_dir, self.mark)
        logging.getLogger("cardialign").addHandler(logging.FileHandler(self.run_dir / LOGS / LOG, delay=True))
        return look_beside(self.run_dir, self.config, self.over.is_set)

    def finish(self) -> None:
        """No checkpoint comes any more: `run` ends when none waits."""
        self.over.set()


class Beside:
    """The evaluation worker of a run as its driver sees it. Without `config.evaluation` nothing happens.

    What goes wrong is told once and ends the evaluation, not the run.
    """

    def __init__(self, config: RunConfig, run_dir: Path, mark: fence.Mark, tell: Callable[..., None] = log.warning):
        self.config, self.run_dir, self.mark, self.tell = config, run_dir, mark, tell
        self.actor: Any = None
        self.running: Any = None
        self._looked = 0.0

    @property
    def cpus(self) -> int:
        """Beside those of the training."""
        return 0 if self.config.evaluation is None else self.config.evaluation.cpus

    def begin(self) -> None:
        """Ask Ray for the worker, once the training has what it needs: what is left is all that it may take."""
        if self.config.evaluation is None or self.actor is not None:
            return
        import ray

        lives: dict[str, Any] = {"max_restarts": LIVES, "max_task_retries": LIVES, "max_concurrency": 2}
        kind: Any = ray.remote(num_cpus=self.cpus, **lives)(Worker)
        words = (self.config.resolved(), str(self.run_dir), handed_on(os.environ), self.mark)
        self.actor = kind.remote(*words)
        self.running = self.actor.run.remote()

    def look(self, complete: bool) -> None:
        """Begin once the training is `complete`; and whether the worker has ended before its time, told once."""
        now = time.monotonic()
        if complete:
            self.begin()
        if self.running is not None and now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._wait(0.0)

    def finish(self, stopped: bool) -> None:
        """The training is over: wait for what still waits, unless it was stopped and its place is wanted."""
        wanted = self.config.evaluation
        if not stopped:
            self.begin()  # a run that had nothing left to train
        if self.running is not None and wanted is not None:
            if not stopped:
                self.actor.finish.remote()
                self._wait(60 * wanted.wait_minutes)
            if self.running is not None and not stopped:
                self.tell(
                    "evaluation=unfinished after=%g minutes remedy=the same command again looks at what is left",
                    wanted.wait_minutes,
                )

    def close(self) -> None:
        """No worker is left behind."""
        if self.actor is not None:
            import ray

            with contextlib.suppress(Exception):
                ray.kill(self.actor)
        self.actor = self.running = None

    def _wait(self, seconds: float) -> None:
        import ray

        try:
            done, _ = ray.wait([self.running], timeout=seconds)
            if done:
                ray.get(done[0])
                self.running = None
        except Exception as error:  # of Ray or of the evaluation: the training goes on
            cause = getattr(error, "cause", None)
            reason = cause.problem if isinstance(cause, UserError) else " ".join(str(error).split())[:300]
            self.tell("evaluation=ended reason=%s; the training goes on without it", reason)
            self.running = None
