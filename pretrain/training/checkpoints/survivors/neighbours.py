"""What each rank of a run does for the case that another one dies: it keeps copies, and listens for their use."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from cardialign.pretrain.config import TrainingConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.checkpoints.survivors.copies import NeighbourCopies
from cardialign.pretrain.training.checkpoints.survivors.listening import Survivor
from cardialign.pretrain.training.engine import Workers

log = logging.getLogger(__name__)


class Neighbours:
    """Of one rank, as a context around its steps.

    Nothing, where `training.neighbour_copy_every` is 0, a worker is alone, or no driver would ask the survivors.
    """

    def __init__(self, engine: Any, run_dir: Path, workers: Workers, training: TrainingConfig) -> None:
        self.every, mark = training.neighbour_copy_every, fence.held(run_dir)
        if self.every and (workers.world_size == 1 or mark is None or mark.group == 0):
            why = "one worker alone" if workers.world_size == 1 else "no driver that would ask its survivors"
            log.info("neighbour_copy_every=%d action=none reason=%s", self.every, why)
            self.every = 0
        if self.every:
            self.copies = NeighbourCopies(engine, run_dir, workers)
            self.survivor = Survivor(self.copies, run_dir, workers, training.keep_checkpoints)

    def due(self, step: int) -> bool:
        """Whether copies are made once `step` steps are done."""
        return self.every > 0 and step % self.every == 0

    def take(self, state: TrainerState, problem: str | None) -> None:
        """As `NeighbourCopies.take`."""
        self.copies.take(state, problem)

    @property
    def host_bytes(self) -> int:
        """What the copies of this rank hold."""
        return self.copies.host_bytes if self.every else 0

    def __enter__(self) -> Neighbours:
        if self.every:
            self.survivor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.every:
            self.survivor.__exit__(kind, error, trace)
