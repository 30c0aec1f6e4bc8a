"""`cardialign evaluate linear-probe` and `fine-tune`: from an exported encoder to a table, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.cluster.commands.evaluate.fine_tune import SHIPPED
from cardialign.cluster.commands.evaluate.linear_probe import SHIPPED_FLOORS
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.layout import INDEX
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS
from cardialign.pretrain.evaluation.probing.systems import FLOORS
from tests.cluster.conftest import Answer
from tests.support.planted_source import RECORDS_PER_PATIENT, PlantedSource
from tests.support.tiny_set import SPEC

Call = Callable[..., Answer]
FOLDS = ("--labels", "finding", "--train-folds", "1", "--validation-folds", "2", "--test-folds", "3")


class ThreeFolds(PlantedSource):
    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return build_shards(ThreeFolds(folder, 180), folder / "shards", SetPlan(SPEC), workers=1).path


def test_a_probe_stands_beside_its_floors_and_stores_everything(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *FOLDS)
    answer = cardialign(*words, "--shares", "20,100", "--seeds", 2, "--bootstrap", 20, "--out", tmp_path / "probe.json")
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "probe.json").read_text())
    assert {row["system"] for row in result["rows"]} == {"encoder", "untrained", "random-kernels", "hand-features"}
    best = {
        row["system"]: row["macro"] for row in result["rows"] if row["share"] == 1 and row["reader"] == "linear probe"
    }
    assert best["random-kernels"] > 0.9, "up, down and fast are what kernels see"
    assert (
        result["task"]["trained_on"]["status"] == "unknown"
        and len(result["task"]["systems"]["encoder"]["weights"]) == 64
    )


def test_training_from_scratch_and_from_an_encoder(cardialign: Call, exported: Path, shards: Path) -> None:
    words = ("evaluate", "fine-tune", "--shards", shards, *FOLDS, "--bootstrap", 0, "--set", "epochs=1")
    scratch = cardialign(*words, "--preset", "supervised-resnet1d", "--seeds", 2)
    assert scratch.code == 0, scratch.err
    assert len(scratch.json["seeds"]) == 2 and scratch.json["start"] == "from random weights: resnet1d"
    partial = cardialign(*words, "--encoder", exported, "--preset", "partial")
    assert partial.code == 0, partial.err
    assert partial.json["options"]["train_blocks"] == 1 and partial.json["options"]["epochs"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--labels", "finding", "--train-folds", "1"), "--labels needs folds for all three parts"),
        (("--protocol", "clean-v1:csn", "--train-folds", "1"), "folds with --protocol"),
        ((*FOLDS[:-1], "2"), "fold 2 is in two of train, validation and test"),
        ((*FOLDS, "--shares", "0"), "not a share in percent"),
        ((*FOLDS, "--floors", "ceiling"), "is none of untrained, random-kernels, hand-features"),
        (("--labels", "nobody", *FOLDS[2:]), "no label set 'nobody'"),
    ],
)
def test_what_a_probe_cannot_do_is_told(
    cardialign: Call, exported: Path, shards: Path, words: tuple[str, ...], said: str
) -> None:
    answer = cardialign("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *words)
    assert answer.code != 0 and said in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "full"), "--preset full starts from an encoder"),
        (("--preset", "supervised-s4", "--encoder", "x"), "--preset supervised-s4 starts from random weights"),
        (("--preset", "supervised-s4", "--set", "lr=-1", "--set", "epoch=3"), "lr: input should be greater than 0"),
    ],
)
def test_what_fine_tuning_cannot_do_is_told(cardialign: Call, shards: Path, words: tuple[str, ...], said: str) -> None:
    answer = cardialign("evaluate", "fine-tune", "--shards", shards, *FOLDS, *words)
    assert answer.code != 0 and said in answer.err


@pytest.mark.parametrize("command", ["linear-probe", "fine-tune"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(cardialign: Call, shards: Path, command: str) -> None:
    words = ("evaluate", command, "--encoder", "absent", "--shards", shards, *FOLDS, "--out", shards / INDEX / "x.json")
    answer = cardialign(*words)
    assert answer.code == 1 and "--out" in answer.err and "cannot be written" in answer.err
    assert (shards / INDEX).is_file()


def test_the_words_of_the_options_are_those_of_the_tables() -> None:
    assert SHIPPED_FLOORS == FLOORS
    assert tuple(PRESETS) == SHIPPED
