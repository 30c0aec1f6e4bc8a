"""Zero-shot by another way than the cosine is what the encoder says of each record beside each prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.evaluation.task import labelled_task
from cardialign.pretrain.evaluation.zero_shot import compare_zero_shot, evaluate_zero_shot
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.pretrain.methods.test_d_beta import config_of
from tests.support.small_bert import write_small_bert
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return untrained_encoder(config_of(write_small_bert(tmp_path_factory.mktemp("text") / "bert")), SPEC, seed=1)


def test_scores_are_those_of_the_encoder_and_the_result_says_the_way(
    shards: ShardSet, prompts: Path, encoder: LoadedEncoder
) -> None:
    how = {"prompts": prompts, "folds": [1], "bootstrap": 2, "batch_size": 7}
    found = evaluate_zero_shot(encoder, shards, **how, scoring="fused")
    words, rows = load_prompts(prompts), labelled_task(shards, prompts, folds=[1]).rows
    signal = np.stack([shards.read_record(row).millivolts() for row in rows])
    assert found.scored is not None and found.prompts["scoring"] == "fused"
    for column, each in enumerate(words.classes):
        own = encoder.class_scores(signal, list(each.prompts), sampling_rate=100, scoring="fused").mean(axis=1)
        if each.against:
            own -= encoder.class_scores(signal, list(each.against), sampling_rate=100, scoring="fused").mean(axis=1)
        np.testing.assert_allclose(found.scored.scores[0][:, column], own, atol=1e-4)
    plain = evaluate_zero_shot(encoder, shards, **how)
    assert "scoring" not in plain.prompts and plain.scored is not None
    assert not np.allclose(plain.scored.scores, found.scored.scores)


def test_an_encoder_that_does_not_have_the_way_is_refused(
    shards: ShardSet, prompts: Path, encoder: LoadedEncoder
) -> None:
    other = untrained_encoder(small_config(), SPEC, seed=0)
    with pytest.raises(UsageError, match="does not score texts by 'fused'"):
        compare_zero_shot(encoder, other, shards, prompts=prompts, folds=[1], bootstrap=2, scoring="fused")
