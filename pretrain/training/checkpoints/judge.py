"""Whether, and from where, a run may go on in its directory: judged before anything there is changed.

Every door asks here before its first write: the training loop on its own behalf, and the Ray driver before it touches
the run directory or the tracking store. A start that is refused leaves everything as it was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import LARGEST_TEXT, read_bytes
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import CONFIG, FIRST_COMMIT, STARTED_OVER
from cardialign.pretrain.run.layout import check_layout
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.run.trust import check_trusted
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.condition import REMEDIES, Finding, newest_sound
from cardialign.pretrain.training.checkpoints.duration import continued_plan
from cardialign.pretrain.training.checkpoints.files import NOTE, CheckpointError, checkpoints_folder
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_continues, stored_config
from cardialign.pretrain.training.data import open_data, total_steps
from cardialign.pretrain.training.schedule import Plan, as_planned

log = logging.getLogger(__name__)

Resume = Literal["same", "extend", "start-over"]
"""What a start asks of a run that is there: to go on as planned, to go on to another number of steps, to give way."""


@dataclass(frozen=True)
class Facts:
    """What a run's data say: the selected records, their number, the version of their order, and the text bank."""

    selection_fingerprint: str
    records: int
    order_version: int = ORDER_VERSION
    bank_digest: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a start will do. Nothing has been changed.

    plan: the run's steps. found, state: the checkpoint that it goes on from, None for a fresh start. damaged: newer
    ones that it passes over. start_over: the run that is there is to be moved aside.
    """

    plan: Plan
    found: Finding | None = None
    state: TrainerState | None = None
    damaged: tuple[Finding, ...] = ()
    start_over: bool = False

    @property
    def finished(self) -> bool:
        """Nothing is left to train."""
        return self.state is not None and self.state.step >= self.plan[-1][1]


def judge_start(config: RunConfig, run_dir: Path, resume: Resume = "same", *, quick: bool = False) -> Verdict:
    """`judge` for who has not opened the run's data yet."""
    _, selection, _ = open_data(config)
    return judge(run_dir, config, Facts(selection.fingerprint, len(selection.rows)), resume, quick=quick)


def judge(run_dir: Path, config: RunConfig, facts: Facts, resume: Resume = "same", *, quick: bool = False) -> Verdict:
    """The verdict on a start of `config` in `run_dir`.

    quick: a second look; checkpoints by their sizes, not by every digest, and without a word to the user. "start-over"
    repeated is no second start over: the run that the first one began goes on until it is finished, so that a scheduler
    may repeat the command.
    Raises UserError: the directory cannot be used, its run is another one, asks for a duration that would change the
    learning rate, or has checkpoints of which none serves.
    """
    check_layout(run_dir)
    asked = total_steps(config, facts.records)
    anew = Verdict(as_planned(asked), start_over=True)
    if resume == "start-over" and not (run_dir / STARTED_OVER).is_file():
        return anew
    try:
        verdict = _continued(run_dir, config, facts, asked, resume, quick)
    except UserError:
        if resume == "start-over":
            return anew
        raise
    if resume == "start-over" and verdict.finished:
        return anew
    return verdict


def _continued(run_dir: Path, config: RunConfig, facts: Facts, asked: int, resume: Resume, quick: bool) -> Verdict:
    found, passed = newest_sound(run_dir, quick=quick)
    level = logging.INFO if quick else logging.WARNING
    for each in passed:
        log.log(level, "checkpoint=%s action=pass-over condition=%s reason=%s", each.path, each.condition, each.said())
    if found is None:
        _refuse_to_forget(run_dir, config, passed)
        return Verdict(as_planned(asked))
    refuse_what_others_wrote(run_dir, found)
    state = TrainerState.read(found.path)
    check_continues(state, config, facts.selection_fingerprint, facts.order_version, found.path, level)
    plan = continued_plan(state, config, asked, facts.records, resume == "extend", found.path, level)
    return Verdict(plan, found, state, tuple(each for each in passed if each.condition == "damaged"))


def refuse_what_others_wrote(run_dir: Path, found: Finding) -> None:
    """Raises UserError where others may write the run (`run.trust`). A worker group does not ask: its driver has, and a
    group that follows another goes on from what that has just written."""
    mark = fence.held(run_dir)
    if mark is not None and mark.group:
        return
    try:
        below = {found.path.parent, found.path, *(found.path / name for name in (files.MANIFEST, *found.names))}
        below |= {parent for path in tuple(below) for parent in path.parents if found.path in parent.parents}
        check_trusted(run_dir, sorted(below))
    except OSError as error:
        raise CheckpointError(f"checkpoint {found.path} cannot be read now: {error}", REMEDIES["unreadable"]) from None


def _refuse_to_forget(run_dir: Path, config: RunConfig, passed: list[Finding]) -> None:
    """Raises CheckpointError when there were checkpoints: none that serves is not the same as none."""
    there = [each.said() for each in passed if each.condition != "foreign"]
    there += [f"{files.QUARANTINE}/{path.name}: put aside ({reason})" for path, reason in _quarantined(run_dir)]
    lost = _steps_without_checkpoint(run_dir, config)
    if lost and not there:
        there.append(
            f"the loss trace has {lost} steps, and no checkpoint of them is under {checkpoints_folder(run_dir)}"
        )
    if not lost and not there and (run_dir / FIRST_COMMIT).exists():
        there.append(f"{FIRST_COMMIT} says that one was committed, and none is under {checkpoints_folder(run_dir)}")
    if there:
        raise CheckpointError(
            f"the run in {run_dir} has been trained, and no checkpoint of it can be continued:\n"
            + "\n".join(f"  - {line}" for line in there),
            "nothing was changed: bring one of them back from a copy, or use the release that wrote it; "
            "--start-over moves all of it aside and begins at step 0",
        )


def _quarantined(run_dir: Path) -> list[tuple[Path, str]]:
    folder = checkpoints_folder(run_dir) / files.QUARANTINE
    found = []
    for path in sorted(folder.glob(f"{files.PREFIX}*")) if folder.is_dir() else []:
        if path.is_dir():
            note = path / NOTE
            text = read_bytes(note, LARGEST_TEXT).decode("utf-8", "replace").strip() if note.is_file() else ""
            found.append((path, text[:200] or "without a note"))
    return found


def _steps_without_checkpoint(run_dir: Path, config: RunConfig) -> int:
    """Steps in the trace of a run that had a checkpoint, or must have had one; 0 when it need not."""
    trace = read_trace(run_dir)
    last = int(trace[-1]["step"]) if trace else 0
    if not last:
        return 0
    try:
        told = stored_config(run_dir)
    except UserError as error:
        raise CheckpointError(
            f"the loss trace of the run in {run_dir} has {last} steps, there is no checkpoint, and whether one was due "
            f"nobody can say: {error.problem}",
            f"nothing was changed: put {run_dir / CONFIG} back as it was; --start-over moves the run aside and begins "
            "at step 0",
        ) from None
    if (run_dir / FIRST_COMMIT).exists():
        return last
    training = (told or config).training
    # Behind the steps the first one may still be on its way when the second is due, which waits for it.
    due = training.checkpoint_every * (2 if training.checkpoint_writing == "background" else 1)
    return last if last > due else 0
