"""The thread that waits for Ray Train ends when nobody waits for its training any more, and before Ray does."""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any

import pytest
import ray

from cardialign.cluster.runs.fit import Fit

TRAINERS: Any = importlib.import_module("ray.train.v2.api.data_parallel_trainer")


class Asks:
    """A trainer that waits as Ray Train does: by the `ray` that its module sees."""

    def fit(self) -> object:
        return TRAINERS.ray.get("the end of the training")


class NeverReady:
    """`ray`, whose result never comes: a wait without an end could not be left."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.turns = 0

    def get(self, refs: object, timeout: float | None = None) -> object:
        assert timeout is not None, "a wait without an end"
        self.turns += 1
        time.sleep(0.01)
        raise ray.exceptions.GetTimeoutError


def test_a_training_that_is_given_up_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = NeverReady()
    monkeypatch.setattr(TRAINERS, "ray", plain)
    trainer: Any = Asks()
    fit = Fit(trainer)
    fit.start()
    while plain.turns < 3:
        time.sleep(0.01)
    assert fit.is_alive()
    fit.give_up()
    assert not fit.is_alive() and TRAINERS.ray is plain
    assert not [each for each in threading.enumerate() if each.name == "ray-train-fit"]


def test_what_a_training_raises_and_returns_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ready(NeverReady):
        def get(self, refs: object, timeout: float | None = None) -> object:
            if self.turns < 2:
                return super().get(refs, timeout)
            raise ray.exceptions.RayActorError

    plain = Ready()
    monkeypatch.setattr(TRAINERS, "ray", plain)
    trainer: Any = Asks()
    fit = Fit(trainer)
    fit.start()
    fit.join(10)
    assert isinstance(fit.error, ray.exceptions.RayActorError) and plain.turns == 2
    fit.give_up()
