"""Two tiny shard sets with their text banks, for runs that are disturbed on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_set import make_tiny_cohort, make_tiny_shards


@pytest.fixture(scope="session")
def two_banked_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from cardialign.cluster.runs.text_bank import ensure_text_bank
    from cardialign.pretrain.config import TextConfig

    sets = []
    for patients, seed in ((30, 3), (12, 4)):
        folder = tmp_path_factory.mktemp("tiny")
        sets.append(make_tiny_shards(folder, make_tiny_cohort(folder, patients, seed)))
        ensure_text_bank(sets[-1], TextConfig())
    return sets[0], sets[1]


@pytest.fixture(scope="session")
def plain_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set without a text bank, for methods that read no reports."""
    folder = tmp_path_factory.mktemp("plain")
    return make_tiny_shards(folder, make_tiny_cohort(folder))


@pytest.fixture(scope="session")
def banked_shards(two_banked_sets: tuple[Path, Path]) -> Path:
    return two_banked_sets[0]
