"""One recording under two names is found by what is stored of it, in a set and between the sets of a mixture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.commands.shards.build import _repeats
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.repeats import Repeats, find_repeats
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.arrays import Arrays
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.training.data import open_data

PATIENTS = ("p", "p", "q", "r")
RECORDINGS = (0, 1, 0, 2)  # of each file: the third is the first one's


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repeats")
    (root / "in").mkdir()
    for number, recording in enumerate(RECORDINGS):
        signal = np.random.default_rng(recording).normal(0, 0.3, (12, 250)).astype(np.float32)
        np.save(root / "in" / f"r{number}.npy", signal)
    rows = [f"r{n},{patient},{n + 1},report {n}" for n, patient in enumerate(PATIENTS)]
    (root / "table.csv").write_text("\n".join(["name,person,fold,report", *rows]) + "\n")
    named = {"key_column": "name", "patient_column": "person", "fold_column": "fold", "report_column": "report"}
    for codec in ("einthoven", "npy"):
        source = Arrays(root / "in", sampling_rate=100, table=root / "table.csv", **named)
        build_shards(source, root / codec, SetPlan(SignalSpec(100, 2.5), codec=codec), workers=1)
    return root


@pytest.mark.parametrize("codec", ["einthoven", "npy"])
def test_a_copy_under_another_patient_and_fold_is_counted_and_equal_sizes_are_none(repeated: Path, codec: str) -> None:
    shards = ShardSet.open(repeated / codec)
    assert find_repeats([shards]) == Repeats(1, 1, 1, (("arrays-r0", "arrays-r2"),))
    assert find_repeats([shards], [np.array([0, 1, 3])]) == Repeats(0, 0, 0, ())
    assert find_repeats([shards], [np.array([0], dtype=np.int64)]).records == 0


def test_a_build_tells_the_recordings_that_are_there_again(repeated: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _repeats(repeated / "npy") == {"repeats": {"records": 1, "patients": 1, "folds": 1}}
    assert "arrays-r0 = arrays-r2" in caplog.text


def test_copies_of_one_set_are_no_mixture_unless_their_records_differ(
    repeated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(repeated / "npy", tmp_path / "copy")

    def mixture(other: Path, first: tuple[int, ...], second: tuple[int, ...]) -> int:
        parts = [{"shards": repeated / "npy", "folds": first}, {"shards": other, "folds": second}]
        config = RunConfig(data={"mixture": parts, "patient_disjoint": False}, training={"global_batch": 2, "steps": 1})
        return len(open_data(config)[1].rows)

    with pytest.raises(DataError, match="copies of one shard set: 2 of the selected records are in both"):
        mixture(tmp_path / "copy", (1, 2, 3), (2, 3, 4))
    assert mixture(tmp_path / "copy", (1,), (2, 4)) == 3 and "repeats" not in caplog.text
    assert mixture(repeated / "einthoven", (1,), (2,)) == 2, "another codec: another set"
    assert mixture(tmp_path / "copy", (1,), (2, 3)) == 3 and "mixture repeats=1 " in caplog.text
