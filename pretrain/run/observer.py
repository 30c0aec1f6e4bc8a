"""What the training loop tells the outside, and what it asks.

`cluster` implements it for Ray and MLflow; `NullObserver` is enough for a library user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Observer(Protocol):
    """One per rank. None of these may block on the network: the step path never waits for it."""

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was committed and verified at `path` (every rank, after the commit)."""

    def should_stop(self) -> bool:
        """True when this rank has been asked to stop.

        The loop agrees on it over all ranks and checkpoints at the next step boundary.
        """


class NullObserver:
    """Keeps nothing, never stops."""

    def checkpoint(self, step: int, path: Path) -> None:
        return None

    def should_stop(self) -> bool:
        return False
