"""What a missingness surface is asked for: records, classes, and by words or by a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan, having_leads
from cardialign.pretrain.evaluation.missingness.surface.scorers import (
    Ranked,
    Scorer,
    scorer_of_probe,
    scorer_of_words,
)
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.task import EvaluationTask
from cardialign.pretrain.export.missing_card import sealed
from cardialign.pretrain.export.usable import UsableEncoder

CARD_KEYS = ("measure", "on", "records", "patients", "auroc", "surfaces", "presets", "settings", "shards", "bootstrap")


@dataclass(frozen=True)
class Asked:
    """ranked: the records drawn, and their classes; scored_rows: all that were to be drawn from.

    left_out: records without any lead of a preset. test: whether these are test records, whose opening is noted.
    """

    ranked: Ranked
    measure: str
    about: dict[str, Any]
    scored_rows: np.ndarray
    left_out: int
    test: bool
    make: Callable[[UsableEncoder, ShardSet, str | None], Scorer]

    @classmethod
    def of_words(cls, task: EvaluationTask, shard_set: ShardSet, plan: SurfacePlan, records: int, test: bool) -> Asked:
        """Zero-shot. Raises as `Ranked.by_words`, `having_leads` and `Ranked.drawn`."""
        whole = Ranked.by_words(task)
        fit = having_leads(whole, shard_set, plan.presets)
        ranked, prompts = fit.drawn(records, plan.seed), task.prompts
        told = {"name": prompts.name, "version": prompts.version, "digest": prompts.digest}

        def make(encoder: UsableEncoder, shard_set: ShardSet, scoring: str | None) -> Scorer:
            return scorer_of_words(encoder, shard_set, task, ranked.codes, scoring)

        about = {"prompts": told, "protocol": task.protocol, "folds": None if task.folds is None else list(task.folds)}
        left_out = len(whole.rows) - len(fit.rows)
        return cls(ranked, "zero-shot", about, fit.rows, left_out, test, make)

    @classmethod
    def of_probe(cls, task: ProbeTask, shard_set: ShardSet, plan: SurfacePlan, records: int) -> Asked:
        """A linear probe that is learnt from whole records. Raises as `of_words`."""
        whole = Ranked.by_probe(task)
        fit = having_leads(whole, shard_set, plan.presets)
        ranked = fit.drawn(records, plan.seed)

        def make(encoder: UsableEncoder, shard_set: ShardSet, scoring: str | None) -> Scorer:
            return scorer_of_probe(encoder, shard_set, task, ranked.codes)

        left_out = len(whole.rows) - len(fit.rows)
        return cls(ranked, "linear probe", dict(task.about), fit.rows, left_out, True, make)

    def scorer(self, encoder: UsableEncoder, shard_set: ShardSet, scoring: str | None = None) -> Scorer:
        """Raises as `scorer_of_words` and `scorer_of_probe`."""
        return self.make(encoder, shard_set, scoring)

    def lines(self) -> list[str]:
        """What is to be told of the records."""
        if not self.left_out:
            return []
        return [f"left out: {self.left_out} records without any lead of one of the presets"]


def result_card(result: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """The card of what `evaluate missingness` found, for the encoder of this digest."""
    return sealed({key: result[key] for key in CARD_KEYS}, encoder)
