"""Records of CPSC2018 and Chapman-Shaoxing-Ningbo are found by the names that the published label files give them.

It does not matter which reader built the shards.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.pretrain.evaluation.label_files import read_label_file, read_prompt_file
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.evaluation.protocols import load_task, open_task
from tests.support.published_files import make_set, write_label_files

SPEC = SignalSpec(100, 2.5)
NAMES = {"cpsc2018": ["A0001", "A0030", "A2600", "A6877"], "csn": ["JS00001", "JS00030", "JS18048", "JS45551"]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], ShardSet]:
    """(task, source) -> a set of that task's records, read by its own reader and by the general ones."""
    made = {}
    for task, names in NAMES.items():
        for source in (task, "challenge"):
            made[task, source] = make_set(tmp_path_factory.mktemp(f"{task}-{source}"), source, names, SPEC)
    return made


@pytest.mark.parametrize("source", ["own", "challenge"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("task", ["cpsc2018", "csn"])
def test_published_names_find_their_keys(
    sets: dict[tuple[str, str], ShardSet], tmp_path: Path, task: str, split: str, source: str
) -> None:
    shards = sets[task, task if source == "own" else source]
    published = [NAMES[task][k] for k in (3, 0, 2)]
    folder = write_label_files(tmp_path, task, split, published)
    found = open_task(f"merl-v1:{task}", shards, split=split, label_files=folder)
    prefix = task if source == "own" else source
    assert sorted(shards.key(row) for row in found.rows) == sorted(f"{prefix}-{name}" for name in published)
    classes = load_task(f"merl-v1:{task}").values["labels"]["classes"]
    assert found.prompts.codes == classes
    for row, truth in zip(found.rows, found.truth, strict=True):
        place = published.index(shards.key(row).partition("-")[2])
        assert {classes[k] for k in np.flatnonzero(truth)} == {classes[place], classes[place + 1]}
    assert found.protocol is not None and (found.protocol["published"], found.protocol["missing"]) == (3, 0)
    assert not any("missing" in each for each in found.protocol["deviations"])


@pytest.mark.parametrize("task", ["cpsc2018", "csn"])
def test_a_partial_set_is_scored_on_what_is_there_and_says_what_is_not(
    sets: dict[tuple[str, str], ShardSet], tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    absent = ["A0002", "A0003"] if task == "cpsc2018" else ["JS00002", "JS00003"]
    folder = write_label_files(tmp_path, task, "test", [*absent, *NAMES[task]])
    with caplog.at_level(logging.WARNING):
        found = open_task(f"merl-v1:{task}", sets[task, task], label_files=folder)
    assert len(found.rows) == 4 and found.protocol is not None
    assert (found.protocol["missing"], found.protocol["missing_examples"]) == (2, absent)
    assert (
        found.protocol["note"] == f"4 of 6 test records are in this shard set; 2 are not, such as {', '.join(absent)}"
    )
    assert found.protocol["deviations"][-1] == "2 of 6 records are missing"
    assert "published=6 present=4: not the published figure" in caplog.text
    write_label_files(tmp_path, task, "val", absent)
    with pytest.raises(
        DataError, match=rf"0 of 2 val records are in this shard set .*name {absent[0]}.* the set holds {task}-"
    ):
        open_task(f"merl-v1:{task}", sets[task, task], split="val", label_files=folder)


@pytest.mark.parametrize("task", ["cpsc2018", "csn"])
def test_the_clean_protocol_deals_each_patient_of_these_sets_to_one_part(
    sets: dict[tuple[str, str], ShardSet], task: str
) -> None:
    shards, rows = sets[task, task], []
    for split in ("train", "val", "test"):
        with contextlib.suppress(DataError):  # four patients need not fall into all three parts
            rows += open_task(f"clean-v1:{task}", shards, split=split).rows.tolist()
    assert sorted(rows) == list(range(len(shards)))


@pytest.mark.parametrize("protocol", ["clean-v1", "clean-v2"])
@pytest.mark.parametrize("task", ["cpsc2018", "csn"])
def test_own_prompts_cover_every_class_that_a_reader_can_give(task: str, protocol: str) -> None:
    from cardialign.data_shards.sources.vocabularies import snomed

    codes = set(load_prompts(load_task(f"{protocol}:{task}").values["prompts"]).codes)
    names = snomed.CPSC2018 if task == "cpsc2018" else snomed.CHAPMAN
    assert {name for each in names.values() for name in each} <= codes


@pytest.mark.parametrize(
    ("task", "folder", "counts"),
    [("cpsc2018", "cpsc2018", (4950, 551, 1376)), ("csn", "chapman-shaoxing-ningbo", (16546, 1860, 4620))],
)
def test_every_published_split_file_is_complete_and_finds_the_real_records(
    real_data: Path, tmp_path: Path, task: str, folder: str, counts: tuple[int, int, int]
) -> None:
    published = real_data / "protocols" / "merl"
    labels = load_task(f"merl-v1:{task}").values["labels"]
    read_prompt_file(published / "zeroshot/CKEPE_prompt.json", labels["classes"], "published")
    build_shards(open_source(task, real_data / folder), tmp_path / "set", SetPlan(SignalSpec(500, 2)), workers=1)
    shards = ShardSet.open(tmp_path / "set")
    held = {shards.key(row).partition("-")[2] for row in range(len(shards))}
    found: set[str] = set()
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        names, truth, _ = read_label_file(published / labels[split], labels["id"], labels["classes"])
        assert len(names) == count and truth.any(axis=0).all()
        if held & set(names):
            rows = open_task(f"merl-v1:{task}", shards, split=split, label_files=published).rows
            assert {shards.key(row).partition("-")[2] for row in rows} == held & set(names)
        assert not found & set(names), "no record is published in two parts"
        found |= set(names)
    assert len(held & found) >= 22
