"""Crop and average: every piece is what its encoder says of it alone, and what is averaged is what the word says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, neighbours, probe
from cardialign.pretrain.evaluation.task import EvaluationTask, labelled_task
from cardialign.pretrain.evaluation.windows import Crop, is_used, mean_over_windows, starts
from cardialign.pretrain.evaluation.zero_shot import class_scores
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.small_encoder import SPEC, small_config

ROWS = np.arange(9)


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC)


def test_pieces_lie_side_by_side_and_a_shorter_rest_is_left_out() -> None:
    assert starts(1000, 250) == [0, 250, 500, 750] and starts(1000, 300) == [0, 300, 600]
    assert starts(200, 250) == starts(250, 250) == [0]
    with pytest.raises(UsageError, match="choose one of probabilities, features"):
        Crop(2.5, "logits")


def test_a_piece_is_embedded_as_if_it_were_a_record(encoder: LoadedEncoder, shards: ShardSet) -> None:
    (cut,) = embed_set([encoder], shards, ROWS, EmbedOptions(window=0.8, with_features=True))
    assert cut.features is not None and cut.embedding.shape == (9, 2, 8) and cut.features.shape[:2] == (9, 2)
    records = [shards.read_record(row) for row in ROWS]
    signal, mask = np.stack([r.millivolts() for r in records]), np.stack([r.lead_mask for r in records])
    for w, first in enumerate((0, 80)):
        alone = encoder.encode(signal[..., first : first + 80], mask)
        np.testing.assert_allclose(cut.embedding[:, w], alone.embedding.numpy(), atol=1e-5)
        np.testing.assert_allclose(cut.features[:, w], alone.features.numpy(), atol=1e-5)
    (shown,) = embed_set([encoder], shards, ROWS, EmbedOptions(window=0.8, first_seconds=1))
    assert shown.embedding.shape == (9, 1, 8), "what is not shown is no piece"
    (again,) = embed_set([encoder], shards, ROWS, EmbedOptions(window=0.8, with_features=True))
    np.testing.assert_array_equal(again.embedding, cut.embedding)
    (whole,) = embed_set([encoder], shards, ROWS)
    assert whole.embedding.shape == (9, 8), "pieces and whole records are kept apart"


def test_a_rest_of_a_short_recording_is_no_piece() -> None:
    valid = np.array([1000, 999, 502, 500, 499, 100, 0])
    whole = np.stack([is_used(valid, start, 250) for start in starts(1000, 250)], axis=1).sum(axis=1)
    np.testing.assert_array_equal(whole, np.maximum(valid // 250, 1))


def test_cosines_of_pieces_are_averaged(encoder: LoadedEncoder, shards: ShardSet, prompts) -> None:
    task = labelled_task(shards, prompts)
    cut = EvaluationTask(task.prompts, ROWS, task.truth[:9], task.patients[:9], {}, crop=Crop(0.8, "features"))
    (found,) = class_scores([encoder], shards, cut, EmbedOptions())
    (embedded,) = embed_set([encoder], shards, ROWS, EmbedOptions(window=0.8))
    words = [list(each.prompts) for each in task.prompts.classes]
    means = np.stack([encoder.embed_text(texts).mean(axis=0) for texts in words])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.mean(embedded.embedding @ means.T, axis=1), atol=1e-5)


def test_a_probe_learns_from_every_piece_and_averages_probabilities_as_scikit_learn_does() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(240, 3, 5))
    truth = features[..., :1].mean(axis=1) + 0.2 * draw.normal(size=(240, 1)) > 0.3
    features[draw.random(240) < 0.2, 2] = np.nan  # a third piece that is not whole
    parts = Parts(np.arange(120), np.arange(120, 180), np.arange(180, 240))
    found = probe(features, truth, parts)
    train, used = features[:120], np.isfinite(features[:120, :, 0])
    pieces, labels = train[used], np.repeat(truth[:120], 3, axis=1)[used]
    mean, scale = pieces.mean(axis=0), pieces.std(axis=0)
    fitted = LogisticRegression(C=found.choice, tol=1e-10, max_iter=10_000).fit((pieces - mean) / scale, labels)
    log_odds = ((features[180:] - mean) / scale) @ fitted.coef_[0] + fitted.intercept_
    np.testing.assert_allclose(found.scores[:, 0], np.nanmean(expit(log_odds), axis=1), atol=2e-3)
    averaged = np.nanmean(features, axis=1)
    np.testing.assert_array_equal(mean_over_windows(features), averaged)
    np.testing.assert_array_equal(neighbours(features, truth, parts).scores, neighbours(averaged, truth, parts).scores)
