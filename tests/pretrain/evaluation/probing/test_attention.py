"""The attention-pooled probe finds what one token of many says, decides alike every time, and trains nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.evaluation.features import EmbedOptions
from cardialign.pretrain.evaluation.probing.attention import AttentionProbe, attention_probe
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, probe
from cardialign.pretrain.evaluation.probing.systems import ReadOptions, systems
from cardialign.pretrain.evaluation.probing.tasks import Records, task_of_folds
from cardialign.pretrain.evaluation.probing.tokens import Tokens, read_tokens
from cardialign.pretrain.evaluation.scoring import auroc
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.small_encoder import SPEC, small_config

N, TOKENS, WIDTH = 360, 24, 6
PARTS = Parts(np.arange(0, 240), np.arange(240, 300), np.arange(300, N))


def needles(seed: int = 0) -> tuple[Tokens, np.ndarray]:
    """One token of each record is marked (column 0); column 1 of that token alone says the class."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(N, TOKENS, WIDTH)).astype(np.float32)
    truth = draw.random(N) < 0.4
    at = draw.integers(TOKENS, size=N)
    values[np.arange(N), at, 0] = 6.0
    values[np.arange(N), at, 1] = np.where(truth, 2.0, -2.0) + 0.5 * draw.normal(size=N)
    return Tokens(values, np.ones((N, TOKENS), dtype=bool)), truth[:, None]


def test_a_learnt_query_finds_the_token_that_the_mean_drowns() -> None:
    tokens, truth = needles()
    found = attention_probe(tokens, truth, PARTS)
    mean = probe(tokens.values.mean(axis=1), truth, PARTS)
    test = truth[PARTS.test, 0]
    by_query, by_mean = auroc(found.scores[:, 0], test)[0], auroc(mean.scores[:, 0], test)[0]
    assert by_query > 0.97 and by_mean < 0.85, (by_query, by_mean)


def test_equal_input_gives_equal_scores_and_torchs_generator_stays() -> None:
    tokens, truth = needles()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = attention_probe(tokens, truth, PARTS, share=0.5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = attention_probe(tokens, truth, PARTS, share=0.5, seed=3)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert first.validation == again.validation and first.records == 120


def test_it_is_never_worse_on_validation_than_the_probe_of_the_mean_token() -> None:
    draw = np.random.default_rng(1)
    tokens = Tokens(draw.normal(size=(N, 4, WIDTH)).astype(np.float32), np.ones((N, 4), dtype=bool))
    truth = tokens.values.mean(axis=1)[:, :1] + 0.3 * draw.normal(size=(N, 1)) > 0
    assert attention_probe(tokens, truth, PARTS).validation >= probe(tokens.values.mean(1), truth, PARTS).validation


def test_labels_of_test_records_and_tokens_that_mean_nothing_decide_nothing() -> None:
    tokens, truth = needles()
    mask = np.array(tokens.mask)
    mask[:, -3:] = False
    values = np.array(tokens.values)
    expected = attention_probe(Tokens(values, mask), truth, PARTS).scores
    values[:, -3:] = np.nan
    other = truth.copy()
    other[PARTS.test] = ~other[PARTS.test]
    np.testing.assert_array_equal(attention_probe(Tokens(values, mask), other, PARTS).scores, expected)


def test_a_record_without_any_token_gets_a_finite_score() -> None:
    model = AttentionProbe(torch.zeros(3), torch.ones(3), 2)
    pooled = model.pool(torch.ones(2, 4, 3), torch.tensor([[True, False, False, True], [False] * 4]))
    assert torch.equal(pooled, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


def test_tokens_are_those_of_the_encoder_and_its_weights_stay(shards: ShardSet, tmp_path: Path) -> None:
    encoder = untrained_encoder(small_config(), SPEC, seed=1, with_reports=False)
    task = task_of_folds(shards, "finding", [1], [2], [3])
    before = encoder.weights_digest()
    found = systems(encoder, shards, task, (), options=ReadOptions(tokens=lambda name: tmp_path / name))[0]
    assert found.tokens is not None and found.digest == before
    for place in (0, len(task.rows) - 1):
        record = shards.read_record(int(task.rows[place]))
        alone = encoder.encode(record.millivolts()[None], record.lead_mask[None], return_tokens=True)
        assert alone.tokens is not None and alone.token_mask is not None
        values, mask = found.tokens.rows(np.array([place]))
        wanted = alone.tokens.numpy()[0] * alone.token_mask.numpy()[0][:, None]
        np.testing.assert_allclose(values[0], wanted, atol=1e-5)
        np.testing.assert_array_equal(mask[0], alone.token_mask.numpy()[0])
    fitted = attention_probe(found.tokens, task.truth, task.parts)
    assert np.isfinite(fitted.scores).all() and encoder.weights_digest() == before


def test_an_encoder_without_tokens_and_a_disk_that_is_too_small_are_told(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = untrained_encoder(small_config(), SPEC, seed=1, with_reports=False)
    chosen = Records(shards, np.arange(10))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="tokens of an attention-pooled probe take"):
        read_tokens(encoder, chosen, tmp_path / "full", EmbedOptions())

    def without(self: LoadedEncoder, *given: object, **named: object) -> EncoderOutput:
        return EncoderOutput(torch.zeros(10, 8), torch.zeros(10, 8))

    monkeypatch.setattr(LoadedEncoder, "_encode", without)
    with pytest.raises(UserError, match="has no tokens"):
        read_tokens(encoder, chosen, tmp_path / "none")
