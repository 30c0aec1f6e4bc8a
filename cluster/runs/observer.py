"""What the training loop tells, and asks, inside a Ray Train worker: liveness at checkpoints, stop requests.

The protocol is `cardialign.pretrain.run.observer.Observer`.
"""

from __future__ import annotations

import time
from pathlib import Path

from cardialign.pretrain.run.files import RESIZE, STOP

LOOK_SECONDS = 0.2
"""A request is looked for at most this often: the run directory may be on a network file system."""


class RayObserver:
    """One per rank. Metrics are already in the loop's spool, which the driver tails: nothing waits for a network."""

    def __init__(self, run_dir: Path) -> None:
        self.requests = (run_dir / STOP, run_dir / RESIZE)
        self._looked = float("-inf")
        self._stop = False

    def checkpoint(self, step: int, path: Path) -> None:
        """Tells Ray Train that the run is alive.

        Ray gets no checkpoint of its own: it can lose one that it acknowledged.
        """
        import ray.train

        ray.train.report({"step": step, "checkpoint": str(path)})

    def should_stop(self) -> bool:
        now = time.monotonic()
        if not self._stop and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._stop = any(request.exists() for request in self.requests)
        return self._stop
