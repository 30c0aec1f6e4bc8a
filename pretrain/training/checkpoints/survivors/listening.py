"""The thread of a worker that listens to the controller of its run once a rank has died, and writes what it holds.

The loop of a survivor has ended with an exception, or waits in a collective for one that is gone: this thread needs
neither. It writes as a checkpoint behind the steps is written, under a temporary name of its own.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.background import HURRY_SECONDS, RECEIPTS, Writing, open_behind
from cardialign.pretrain.training.checkpoints.save import not_written
from cardialign.pretrain.training.checkpoints.snapshot import Share
from cardialign.pretrain.training.checkpoints.survivors.copies import Held, NeighbourCopies
from cardialign.pretrain.training.checkpoints.survivors.word import (
    Word,
    enlist,
    folder_of,
    note_of,
    read_word,
    tell_outcome,
)
from cardialign.pretrain.training.engine import Workers

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


class LastWriting(Writing):
    """The checkpoint that survivors commit, on one of them. shares: by whose part they are."""

    def __init__(self, run_dir: Path, word: Word, held: Held, workers: Workers, keep: int) -> None:
        own = [rank for rank, holder in word.parts if holder == workers.rank]
        super().__init__(run_dir, held.state, _together(held.shares[rank] for rank in own), workers, keep)
        self.word = word
        self.writers, self.commits = {holder for _, holder in word.parts}, word.commits
        self.folder = files.survivors_path(run_dir, word.step)
        self.patience = HURRY_SECONDS

    def _write(self) -> dict[str, dict[str, Any]]:
        if self.rank == self.commits:
            self._reach_step()
            open_behind(self.run_dir, self.folder)
        while not (self.folder / RECEIPTS).is_dir():
            self._go_on()
            self.given_up.wait(LOOK_SECONDS)
        return super()._write()

    def _reach_step(self) -> None:
        """No checkpoint without the trace up to it: on a node that is gone its last lines may have been lost."""
        last = max((int(line["step"]) for line in read_trace(self.run_dir)), default=0)
        if last < self.word.step:
            raise not_written(
                f"the loss trace ends at step {last}, the copies are of step {self.word.step}", self.run_dir
            )

    def _go_on(self) -> None:
        super()._go_on()
        said = read_word(self.run_dir, self.word.group)
        if said is None or said.says != "write":
            raise not_written("the controller waits for it no longer", self.run_dir)
        newest = max((step for step, _ in files.committed(self.run_dir)), default=-1)
        if newest >= self.word.step:
            raise not_written(f"the checkpoint of step {newest} has been committed meanwhile", self.run_dir)


def _together(shares: Any) -> Share:
    whole = Share()
    for share in shares:
        whole.archives |= share.archives
        whole.weights = whole.weights if share.weights is None else share.weights
        whole.state = whole.state or share.state
    return whole


class Survivor(threading.Thread):
    """Of one worker, as a context around its steps. It outlives a loop that lost a rank, and ends with any other."""

    def __init__(self, copies: NeighbourCopies, run_dir: Path, workers: Workers, keep: int) -> None:
        super().__init__(name="survivor", daemon=True)
        self.copies, self.run_dir, self.workers, self.keep = copies, run_dir, workers, keep
        mark = fence.held(run_dir)
        self.group = "" if mark is None else mark.label
        self.ended = threading.Event()

    def run(self) -> None:
        held: Mapping[int, Held] | None = None
        while not self.ended.wait(LOOK_SECONDS):
            try:
                word = read_word(self.run_dir, self.group)
                if word is None:
                    continue
                fence.check(self.run_dir)
                if held is None:
                    held = self.copies.freeze()
                    self._enlist({step: sorted(each.shares) for step, each in held.items()})
                if word.says == "write":
                    self._commit(word, held)
                    return
                if word.says == "give-up":
                    return
            except (UserError, OSError) as error:
                log.warning("survivor=%d action=end error=%s", self.workers.rank, error)
                return

    def _commit(self, word: Word, held: Mapping[int, Held]) -> None:
        asked = {rank for rank, holder in word.parts if holder == self.workers.rank}
        if not asked:
            return
        if word.step not in held or not asked <= held[word.step].shares.keys():  # a file says it: a claim
            problem = f"rank {self.workers.rank} is asked for parts of step {word.step} that it does not hold"
            log.warning("survivor=%d action=none error=%s", self.workers.rank, problem)
            if self.workers.rank == word.commits:
                tell_outcome(self.run_dir, word.group, problem)
            return
        log.warning("survivor=%d action=write step=%d parts=%s", self.workers.rank, word.step, dict(word.parts))
        writing = LastWriting(self.run_dir, word, held[word.step], self.workers, self.keep)
        writing.run()  # in this thread
        if self.workers.rank == word.commits and not fence.fenced_out(self.run_dir):
            tell_outcome(self.run_dir, word.group, None if writing.error is None else writing.error.problem)

    def _enlist(self, offers: Mapping[int, list[int]] | None) -> None:
        enlist(self.run_dir, self.group, self.workers.rank, self.workers.world_size, offers)

    def __enter__(self) -> Survivor:
        try:
            self._enlist(None)
            self.start()
        except OSError as error:  # the run needs no survivors
            log.warning("survivor=%d action=none error=%s", self.workers.rank, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, UserError):  # of a rank that is gone: now it is needed
            return
        self.ended.set()
        if fence.fenced_out(self.run_dir):
            return
        with contextlib.suppress(OSError):
            note_of(self.run_dir, self.workers.rank).unlink(missing_ok=True)
        if self.workers.rank == 0:  # with what a driver that was killed has left there
            shutil.rmtree(folder_of(self.run_dir), ignore_errors=True)
