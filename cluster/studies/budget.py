"""What one call of a study may cost, in core hours and in GPU hours, and what it has cost by now."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cardialign.data_shards.errors import UsageError, UserError


@dataclass
class Budget:
    """core_seconds, gpu_seconds: that may be spent, None: any number. cores, gpus: seconds that were spent.

    A cell that trains on a GPU takes it for itself, from its beginning to its end; its processes spend cores, too.
    """

    core_seconds: float | None = None
    gpu_seconds: float | None = None
    cores: float = 0.0
    gpus: float = 0.0

    @property
    def spent(self) -> bool:
        """Whether no further cell shall begin."""
        return any(
            most is not None and so_far >= most
            for most, so_far in ((self.core_seconds, self.cores), (self.gpu_seconds, self.gpus))
        )

    def spend(self, facts: Mapping[str, Any]) -> None:
        """What a cell says that it has cost: `cpu_seconds`, and `seconds` where its `device` is a GPU."""
        self.cores += facts["cpu_seconds"]
        self.gpus += facts.get("seconds", 0.0) if facts.get("device") == "cuda" else 0.0


def budget_of(args: argparse.Namespace) -> Budget:
    """What --budget-hours and --budget-gpu-hours grant. Raises UsageError for GPU hours where no GPU could be used."""
    if args.budget_gpu_hours is not None and args.address in (None, "local"):
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                "--budget-gpu-hours would end nothing: PyTorch sees no GPU on this machine",
                "give --budget-hours (core hours), or --address for a Ray whose nodes have GPUs",
            )
    cores, gpus = (None if each is None else 3600.0 * each for each in (args.budget_hours, args.budget_gpu_hours))
    return Budget(cores, gpus)


@contextlib.contextmanager
def named_with(budget: Budget, made: int, of: int) -> Iterator[None]:
    """A UserError over cells that are not there names the budget that ended the study before they were made."""
    try:
        yield
    except UserError as error:
        if not budget.spent or made == of:
            raise
        raise UserError(f"the budget is spent, {made} of {of} cells are made: {error.problem}", error.remedy) from None
