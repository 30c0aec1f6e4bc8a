"""The section `evaluation:`: what is asked of every checkpoint while the training goes on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config.data import Fold
from cardialign.pretrain.config.fields import Place, Positive, Strict, refuse

LABEL_FREE = ("retrieval", "rankme")
ZERO_SHOT, PROBE = "zero-shot:", "probe:"


class EvaluationConfig(Strict):
    """What a worker beside the training asks of each committed checkpoint. It changes nothing of what is trained.

    shards: another set than the one that is trained on (null). folds or split: the validation records, none of which
    may be trained on. retrieval and rankme are always measured; zero_shot: prompt sets; probe: label sets, whose linear
    probe learns from probe_folds (null: the folds that train). Figures of a probe are those of the validation records.
    most_records: of each of these parts, evenly spaced over it.
    criterion: the encoder that is best by it is kept in `best/` of the run directory: retrieval, rankme,
    zero-shot:PROMPTS or probe:LABELS. hand_over: which encoder the run exports and registers at its end.
    every: of the checkpoints each so many-th is looked at, and the last. most_waiting: of those that wait for the
    worker the newest are kept. cpus: of the worker, beside those of the training. wait_minutes: how long a finished
    training waits for it.
    """

    shards: Place | None = None
    folds: tuple[Fold, ...] | None = None
    split: Literal["val"] | None = None
    zero_shot: tuple[str, ...] = ()
    probe: tuple[str, ...] = ()
    probe_folds: tuple[Fold, ...] | None = None
    criterion: str = "retrieval"
    hand_over: Literal["last", "best"] = "last"
    every: Positive = 1
    most_waiting: Positive = 4
    most_records: Annotated[int, Field(ge=2, le=10**6)] = 5000
    cpus: Annotated[int, Field(ge=1, le=1024)] = 1
    wait_minutes: Annotated[float, Field(ge=0, le=1e5)] = 10.0

    @property
    def criteria(self) -> tuple[str, ...]:
        """What the best may be chosen by."""
        asked = [f"{ZERO_SHOT}{name}" for name in self.zero_shot] + [f"{PROBE}{name}" for name in self.probe]
        return (*LABEL_FREE, *asked)

    @model_validator(mode="after")
    def _names_its_records(self) -> EvaluationConfig:
        problems = []
        if (self.folds is None) == (self.split is None):
            problems.append("name the validation records: folds, or split: val; one of the two")
        if self.folds is not None and not self.folds:
            problems.append("folds is empty; name the folds of the validation records")
        if self.probe and self.folds is None:
            problems.append("a probe learns and is judged by folds; give folds instead of split, or leave probe out")
        if set(self.probe_folds or ()) & set(self.folds or ()):
            problems.append("probe_folds and folds share a fold; a record that is learnt from judges nothing")
        if self.criterion not in self.criteria:
            problems.append(f"criterion {self.criterion!r} is none of {', '.join(self.criteria)}")
        refuse(problems)
        return self
