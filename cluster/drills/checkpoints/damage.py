"""What is done to a file, and what must become of a run whose newest checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cardialign.cluster.drills.checkpoints.half_done import AT, copy_of, goes_on, kinds_of_files
from cardialign.cluster.drills.ground import EVERY, Ground
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.pretrain.training.checkpoints.files import NOTE, QUARANTINE, checkpoints_folder, committed_path


def each_kind_damaged(ground: Ground, name: str, damage: Callable[[Path], None]) -> Outcome:
    """Damage one file after the other of a run's newest checkpoint; each time the run must go on from the one before,
    put the bad one aside with its reason, and be the undisturbed run."""
    outcome, tried = Outcome(), []
    for number in range(len(kinds_of_files(committed_path(copy_of(ground, name), AT)))):
        run_dir = copy_of(ground, name)
        path = kinds_of_files(committed_path(run_dir, AT))[number]
        damage(path)
        first = goes_on(ground, run_dir, outcome)
        aside = checkpoints_folder(run_dir) / QUARANTINE / committed_path(run_dir, AT).name
        require((aside / NOTE).is_file(), f"{path.name}: the damaged checkpoint was not put aside")
        require(path.name in (aside / NOTE).read_text(), f"{path.name}: {NOTE} does not name it")
        require(first == AT - EVERY + 1, f"{path.name}: the run went on at step {first}, not behind the one before")
        tried.append(path.name)
    outcome.note = f"{len(tried)} kinds of files: {', '.join(tried)}"
    return outcome
