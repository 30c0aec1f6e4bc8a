"""The training of one cell: a run without Ray in a process of its own, which dies with whoever started it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.environment.versions import source_root
from cardialign.cluster.studies.origin import RECIPE, of_another_study, plain
from cardialign.cluster.studies.outcome import NotLearnt
from cardialign.data_shards.errors import NOT_LEARNING, STOPPED, UserError
from cardialign.data_shards.files import parse_json, read_text

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

RUN, OUTPUT = "run", "training.log"
REMEDY = "remedy:"


def train(config: RunConfig, folder: Path, lock: int, says: Callable[[Any], bool] | None = None) -> None:
    """In a process of its own, which has the lock as well: a cell is not free while its training still ends.

    says: whether the recipe of an unfinished training is this one; without it they must be equal.
    """
    recipe = json.dumps(plain(config), indent=1)  # JSON is YAML
    if (folder / RUN).exists() and (folder / RECIPE).is_file():
        before = read_text(folder / RECIPE)
        if before != recipe and not (says is not None and _says(says, before)):
            raise of_another_study(folder, "an unfinished training")
    (folder / RECIPE).write_text(recipe, encoding="utf-8")
    words = ["--recipe", str(folder / RECIPE), "--run-dir", str(folder / RUN)]
    path = os.pathsep.join(filter(None, [str(source_root()), os.environ.get("PYTHONPATH", "")]))
    with (folder / OUTPUT).open("a", encoding="utf-8") as output:
        earlier = output.tell()  # bytes of tries before this one
        process = subprocess.Popen(  # noqa: S603 - our own program, words of a study's recipe
            [sys.executable, "-m", "cardialign.pretrain", *words],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=_end_with_parent,
            pass_fds=[lock],
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: let it reach a checkpoint
            process.terminate()
            process.wait()
            raise
    if code == STOPPED:
        raise KeyboardInterrupt
    if code != 0:
        problem, remedy = _last_words((folder / OUTPUT).read_bytes()[earlier:].decode("utf-8", errors="replace"))
        if code == NOT_LEARNING:
            raise NotLearnt(problem, remedy)
        raise UserError(
            f"training of {folder.name} failed with code {code}: {problem}",
            f"{remedy}see {folder / OUTPUT}; the same command goes on from there",
        )


def _says(says: Callable[[Any], bool], recipe: str) -> bool:
    with contextlib.suppress(ValueError, UserError, LookupError, TypeError):
        return says(parse_json(recipe))
    return False


def _last_words(output: str) -> tuple[str, str]:
    """What a training said last, and the remedy that it named; "" where it named none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    for at in range(len(lines) - 1, 0, -1):  # libraries may have warned after it
        if lines[at].startswith(REMEDY):
            return lines[at - 1], f"{lines[at].removeprefix(REMEDY).strip()}; "
    return lines[-1], ""


def _end_with_parent() -> None:
    """In the training, before it begins: SIGTERM, which it takes as "to a checkpoint", when whoever started it dies."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def children_seconds() -> float:
    """CPU-seconds of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
