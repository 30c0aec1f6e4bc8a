"""Encoders are ranked on validation records by a named criterion; test records stay closed, what was seen is told."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing import systems
from cardialign.pretrain.evaluation.probing.tasks import task_of_folds
from cardialign.pretrain.evaluation.selection import select
from cardialign.pretrain.evaluation.selection.effective_rank import effective_rank
from cardialign.pretrain.evaluation.selection.select import Choice, Validation, choose_encoder
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from cardialign.pretrain.export.trained_on import TrainedOn, chosen, trained_set
from tests.support.planted_source import WORDS
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def candidates() -> list[tuple[str, LoadedEncoder]]:
    return [(f"seed {seed}", untrained_encoder(small_config(), SPEC, seed=seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def validation(shards: ShardSet) -> Validation:
    task = task_of_folds(shards, "finding", [1], [2], [])
    return Validation(shards, task.rows[task.parts.validation], "folds 2", task)


@pytest.fixture(scope="module")
def choice(candidates: list[tuple[str, LoadedEncoder]], validation: Validation) -> Choice:
    return choose_encoder(candidates, validation)


def test_all_criteria_stand_beside_the_one_that_ranks(choice: Choice) -> None:
    values = choice.to_dict()
    assert values["criterion"] == "retrieval" and values["label_free"] and values["test_opened"] == 0
    order = [each["value"] for each in values["ranking"]]
    assert order == sorted(order, reverse=True) and values["best"] == values["ranking"][0]["name"]
    for each in choice.ranking:
        assert set(each.figures) == {"retrieval", "rankme", "probe"} and not each.reasons
        assert each.retrieval is not None and each.figures["retrieval"] == each.retrieval.mean
        assert each.retrieval.reports == len(WORDS) + 1 + 2, "each finding, nothing, and both pairs with FAST"
    assert (
        "chosen by retrieval (no labels) on folds 2" in choice.table() and "no test record was read" in choice.table()
    )


def test_another_criterion_ranks_by_its_own_figures(
    candidates: list[tuple[str, LoadedEncoder]], validation: Validation
) -> None:
    for criterion in ("rankme", "probe"):
        found = choose_encoder(candidates, validation, criterion)
        values = [each.figures[criterion] for each in found.ranking]
        assert values == sorted(values, key=lambda value: -(value or 0)) and found.criterion == criterion
        assert found.label_free == (criterion == "rankme")
    assert "labels of the task: what is chosen is not zero-shot on it" in found.table()


def test_the_rank_is_that_of_the_embeddings_of_the_validation_records(
    choice: Choice, candidates: list[tuple[str, LoadedEncoder]], validation: Validation
) -> None:
    encoder = dict(candidates)[choice.ranking[0].name]
    records = [validation.shard_set.read_record(int(row)) for row in validation.rows]
    signal = np.stack([each.millivolts() for each in records])
    alone = encoder.encode(signal, np.stack([each.lead_mask for each in records])).embedding.numpy()
    assert choice.ranking[0].figures["rankme"] == pytest.approx(effective_rank(alone), rel=1e-4)


def test_only_training_and_validation_records_are_read(
    candidates: list[tuple[str, LoadedEncoder]], shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    plain = select.embed_set

    def watched(encoders, shard_set, rows, *more):
        read.update(np.asarray(rows).tolist())
        return plain(encoders, shard_set, rows, *more)

    for module in (select, systems):
        monkeypatch.setattr(module, "embed_set", watched)
    task = task_of_folds(shards, "finding", [1], [2], [])
    choose_encoder(candidates[:1], Validation(shards, task.rows[task.parts.validation], "folds 2", task), "probe")
    assert {int(fold) for fold in shards.fold[sorted(read)]} == {1, 2}


def test_what_cannot_be_judged_is_told(
    candidates: list[tuple[str, LoadedEncoder]], validation: Validation, shards: ShardSet
) -> None:
    bare = Validation(shards, validation.rows, "folds 2")
    with pytest.raises(UsageError, match="'probe' needs labels"):
        choose_encoder(candidates, bare, "probe")
    silent = untrained_encoder(small_config(), SPEC, with_reports=False)
    with pytest.raises(UserError, match=r"without reports cannot be judged by retrieval: .*trained without reports"):
        choose_encoder([("without reports", silent)], bare)
    assert choose_encoder([("without reports", silent)], bare, "rankme").ranking[0].figures["retrieval"] is None


def test_validation_records_that_a_candidate_was_trained_on_are_refused_or_told(
    validation: Validation, shards: ShardSet
) -> None:
    seen = untrained_encoder(small_config(), SPEC, seed=3)
    seen.trained_on = TrainedOn((trained_set(shards, validation.rows[:4], chosen((2,), None)),))
    with pytest.raises(UserError, match="--allow-trained"):
        choose_encoder([("seen", seen)], validation)
    found = choose_encoder([("seen", seen)], validation, allow_trained=True)
    assert "ledger seen x validation, folds 2, pretraining: shared patients" in found.table()
