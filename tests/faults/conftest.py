"""A tiny shard set with its text bank, for runs that are disturbed on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.tiny_set import make_tiny_cohort, make_tiny_shards


@pytest.fixture(scope="session")
def banked_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cluster.text_bank import ensure_text_bank
    from pretrain.config import TextConfig

    folder = tmp_path_factory.mktemp("tiny")
    shards = make_tiny_shards(folder, make_tiny_cohort(folder))
    ensure_text_bank(shards, TextConfig())
    return shards
