"""What an encoder made of a set is kept beside it and read again, bit for bit; what does not fit is computed anew."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.shard_set.cache import FOLDER_VARIABLE
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbeddedSet, EmbedOptions, embed_set
from cardialign.pretrain.evaluation.zero_shot import compare_zero_shot, evaluate_zero_shot
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.small_encoder import SPEC, small_config

ROWS = np.arange(3, 60, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fresh(shards, tmp_path) -> ShardSet:
    """The set in a folder that nothing was kept beside."""
    shutil.copytree(shards.path, tmp_path / "shards")
    return ShardSet.open(tmp_path / "shards")


@pytest.fixture
def beside(tmp_path) -> Path:
    return tmp_path / "shards.features"


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Records of every batch that an encoder was called with."""
    encode, seen = LoadedEncoder._encode, []

    def counted(self, signal, *rest):
        seen.append(len(signal))
        return encode(self, signal, *rest)

    monkeypatch.setattr(LoadedEncoder, "_encode", counted)
    return seen


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC)


def embed(encoder: LoadedEncoder, shard_set: ShardSet, rows=ROWS, **options) -> EmbeddedSet:
    (embedded,) = embed_set([encoder], shard_set, rows, EmbedOptions(**options))
    return embedded


def test_a_second_evaluation_gives_the_same_figures_without_the_encoder(fresh, prompts, encoder, calls):
    results = [evaluate_zero_shot(encoder, fresh, prompts=prompts, bootstrap=20).to_dict() for _ in range(2)]
    assert sum(calls) == results[0]["n"] == 103
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    seen = []
    evaluate_zero_shot(encoder, fresh, prompts=prompts, bootstrap=5, progress=lambda *counts: seen.append(counts))
    assert seen == [(103, 103)] and sum(calls) == 103


def test_what_is_kept_is_what_the_encoder_says_bit_for_bit(fresh, encoder):
    options = {"batch_size": 7, "with_features": True}
    first, again = embed(encoder, fresh, **options), embed(encoder, fresh, **options)
    records = [fresh.read_record(row) for row in ROWS[:7]]
    output = encoder.encode(np.stack([r.millivolts() for r in records]), np.stack([r.lead_mask for r in records]))
    for embedded in (first, again):
        assert np.array_equal(embedded.rows, ROWS) and embedded.embedding.dtype == np.float32
        assert np.array_equal(embedded.embedding[:7], output.embedding.numpy())
        assert np.array_equal(embedded.features[:7], output.features.numpy())
        assert len(embedded.embedding) == len(embedded.features) == len(ROWS)
    assert np.array_equal(first.embedding, again.embedding) and np.array_equal(first.features, again.features)


def test_the_encoder_is_called_for_whatever_is_not_the_same(fresh, encoder, calls):
    embed(encoder, fresh)
    other = untrained_encoder(small_config(), SPEC)
    with torch.no_grad():
        other.ecg.projection.bias[0] += 0.5  # it still has the name of the first one
    for change in (
        lambda: embed(other, fresh),
        lambda: embed(encoder, fresh, ROWS[:-1]),
        lambda: embed(encoder, fresh, first_seconds=1.0),
        lambda: embed(encoder, fresh, batch_size=8),
        lambda: embed(encoder, fresh, with_features=True),
    ):
        calls.clear()
        change()
        assert calls, "not computed"
        calls.clear()
        change()
        assert not calls, "not kept"
    embed(encoder, fresh)
    assert not calls, "with features beside it the embedding is still there"


def test_of_two_encoders_only_the_new_one_is_computed(fresh, prompts, encoder, calls):
    evaluate_zero_shot(encoder, fresh, prompts=prompts, bootstrap=5)
    calls.clear()
    comparison = compare_zero_shot(encoder, encoder.untrained(9), fresh, prompts=prompts, bootstrap=5)
    assert sum(calls) == 103 and comparison.result.classes != comparison.baseline.classes


@pytest.mark.parametrize("name", ["embedding.npy", "rows.npy", "digests.json"])
def test_a_flipped_byte_is_noticed_and_everything_computed_anew(fresh, encoder, calls, beside, caplog, name):
    before = embed(encoder, fresh).embedding.copy()
    (path,) = beside.glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    calls.clear()
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(embed(encoder, fresh).embedding, before)
    assert sum(calls) == len(ROWS) and caplog.text.count("action=ignore") == 1
    calls.clear()
    embed(encoder, fresh)
    assert not calls, "the damaged copy was replaced"


def test_it_lies_beside_the_set_and_moves_with_nothing(fresh, encoder, beside, cache):
    before = sorted(p.name for p in fresh.path.iterdir())
    embed(encoder, fresh)
    assert sorted(p.name for p in fresh.path.iterdir()) == before
    (kept,) = beside.iterdir()
    assert {p.name for p in kept.iterdir()} == {"rows.npy", "embedding.npy", "digests.json"} and not cache.exists()
    assert json.loads((kept / "digests.json").read_text())["facts"]["batch_size"] == 64


def test_where_nothing_can_be_written_beside_the_set_the_cache_folder_keeps_it(fresh, encoder, beside, cache, calls):
    beside.write_text("in the way")
    embed(encoder, fresh)
    assert len(list((cache / "features").iterdir())) == 1
    calls.clear()
    embed(encoder, fresh)
    assert not calls


def test_where_nothing_can_be_written_at_all_it_is_not_kept(fresh, encoder, beside, cache, calls, caplog):
    beside.write_text("in the way")
    cache.write_text("in the way too")
    with caplog.at_level(logging.WARNING):
        first, again = embed(encoder, fresh), embed(encoder, fresh)
    assert np.array_equal(first.embedding, again.embedding) and sum(calls) == 2 * len(ROWS)
    assert caplog.text.count("action=not-kept") == 2 and str(beside) in caplog.text
