"""Ray Train's `fit` in a thread that can be given up: Ray must not end under a thread that waits in it."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any

log = logging.getLogger(__name__)

TURN_SECONDS = 0.5
"""How often a wait looks whether it was given up."""
END_SECONDS = 10.0
"""How long a thread that was given up is waited for."""


class _GivenUpError(Exception):
    """Nobody waits for this training any more."""


class _InTurns:
    """The module `ray` as Ray Train's trainer sees it, whose `get` waits in turns.

    A wait without an end is a loop in Ray's core, which `ray.shutdown` frees under it: the process then dies of a
    segmentation fault, sooner or later.
    """

    def __init__(self, ray: Any, given_up: threading.Event) -> None:
        self._ray, self._given_up = ray, given_up

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    def get(self, refs: Any) -> Any:
        while not self._given_up.is_set():
            try:
                return self._ray.get(refs, timeout=TURN_SECONDS)
            except self._ray.exceptions.GetTimeoutError:
                continue
        raise _GivenUpError


class Fit(threading.Thread):
    """`trainer.fit()` off the main thread; `error` holds what it raised. head: address of the cluster that it runs on,
    where that is a joined one."""

    def __init__(self, trainer: Any, head: str | None = None) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        self.trainer, self.head = trainer, head
        self.error: BaseException | None = None
        self._given_up = threading.Event()

    def run(self) -> None:
        trainers: Any = importlib.import_module("ray.train.v2.api.data_parallel_trainer")
        plain = trainers.ray
        try:
            trainers.ray = _InTurns(plain, self._given_up)
            self.trainer.fit()
        except BaseException as error:  # handed to the main thread
            self.error = error
        finally:
            trainers.ray = plain

    def give_up(self) -> None:
        """Wait no more for the training, which goes with its Ray; call it before that one is left."""
        self._given_up.set()
        self.join(END_SECONDS)
        if self.is_alive():
            log.warning("the thread that waits for Ray Train has not ended within %.0f s", END_SECONDS)
