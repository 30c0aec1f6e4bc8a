"""A build by Ray tasks writes the same bytes as a build on this machine, and refuses nodes that do not share the filesystem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_build import _work
from data_shards.build_shard import ShardTask
from data_shards.errors import DataError
from data_shards.listing import Slice
from data_shards.sources import open_source
from tests.cluster.tiny_set import SPEC


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.ray
def test_ray_tasks_write_the_bytes_of_a_local_build(cardialign: Callable[..., Any], cohort: Path, shards: Path, tmp_path: Path) -> None:
    answer = cardialign(
        *("shards", "build", "mimic-iv-ecg", "--root", cohort, "--out", tmp_path / "set", "--sampling-rate", SPEC.sampling_rate),
        *("--seconds", SPEC.seconds, "--records-per-shard", 32, "--labels", cohort / "truth.csv", "--patients", cohort / "patients.csv"),
        *("--address", "local", "--workers", 2),
    )
    assert answer.code == 0 and answer.json["shards"] > 1, answer.err
    assert digests(tmp_path / "set") == digests(shards)


def test_a_node_that_does_not_see_the_build_says_so_instead_of_writing_elsewhere(cohort: Path, tmp_path: Path) -> None:
    source = open_source("mimic-iv-ecg", cohort)
    task = ShardTask(0, Slice(0, 100, 200, 0, 2), tmp_path / "not mounted", SPEC, "einthoven", None)
    with pytest.raises(DataError, match="does not see the build") as caught:
        _work(source, task)
    assert "every node mounts" in caught.value.remedy and not (tmp_path / "not mounted").exists()
