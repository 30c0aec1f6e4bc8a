"""What the training loop tells the outside, and what it asks.

`cluster` implements it for Ray and MLflow; `NullReporter` is enough for a library user.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Reporter(Protocol):
    """One per rank. None of these may block on the network: the step path never waits for it."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one finished step (rank 0 only)."""

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was committed and verified at `path` (every rank, after the commit)."""

    def should_stop(self) -> bool:
        """True when this rank has been asked to stop.

        The loop agrees on it over all ranks and checkpoints at the next step boundary.
        """


class NullReporter:
    """Keeps nothing, never stops."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        return None

    def checkpoint(self, step: int, path: Path) -> None:
        return None

    def should_stop(self) -> bool:
        return False
