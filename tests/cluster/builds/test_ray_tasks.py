"""A build by Ray tasks writes the bytes of a local build, and refuses nodes that do not share the filesystem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.builds import ray_tasks as ray_build
from cardialign.cluster.builds.ray_tasks import Counted, TaskNote, _work
from cardialign.data_shards.build.listing import Slice
from cardialign.data_shards.build.shard_task import ShardTask
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.sources import open_source
from tests.support.tiny_set import SPEC


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_tasks_write_the_bytes_of_a_local_build(
    cardialign: Callable[..., Any], cohort: Path, shards: Path, tmp_path: Path
) -> None:
    answer = cardialign(
        *(
            "shards",
            "build",
            "mimic-iv-ecg",
            "--root",
            cohort,
            "--out",
            tmp_path / "set",
            "--sampling-rate",
            SPEC.sampling_rate,
        ),
        *(
            "--seconds",
            SPEC.seconds,
            "--records-per-shard",
            32,
            "--labels",
            cohort / "truth.csv",
            "--patients",
            cohort / "patients.csv",
        ),
        *("--address", "local", "--workers", 2),
    )
    assert answer.code == 0 and answer.json["shards"] > 1, answer.err
    assert digests(tmp_path / "set") == digests(shards)


def test_a_node_that_does_not_see_the_build_says_so_instead_of_writing_elsewhere(cohort: Path, tmp_path: Path) -> None:
    source = open_source("mimic-iv-ecg", cohort)
    task = ShardTask(0, Slice(0, 100, 200, 0, 2), tmp_path / "not mounted", SPEC, "einthoven", None)
    with pytest.raises(DataError, match="does not see the build") as caught:
        _work(source, task, {})
    assert "every node mounts" in caught.value.remedy and not (tmp_path / "not mounted").exists()


def test_progress_moves_within_a_shard_and_a_task_that_runs_again_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_build, "NOTE_SECONDS", 0.0)
    (tmp_path / ".build").mkdir()
    told: list[tuple[int, int]] = []
    counted = Counted(lambda *more: told.append(more))
    for runs_to in (3, 5):  # the node is lost after three entries; the second run starts from the beginning
        note = TaskNote(tmp_path, 7)
        for number in range(runs_to):
            note.add(rejected=number == 1)
            counted.reach(7, *TaskNote(tmp_path, 7).read())
    note.path.write_text("")
    counted.reach(7, *note.read())
    counted.reach(7, 6, 2)
    assert told == [(1, 0), (1, 1), (1, 0), (1, 0), (1, 0), (1, 1)]
