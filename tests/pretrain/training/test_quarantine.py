"""Damaged records in a real run of two ranks:
replaced alike on both, written down, kept through a resume, and bounded by the error budget.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.order.substitutes import substitutes
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import EMPTY_DIGEST, chain_digest
from cardialign.pretrain.run.files import QUARANTINE
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training import quarantine
from cardialign.pretrain.training.data import open_data
from cardialign.pretrain.training.loop import TrainResult, train
from tests.data_shards.stream.test_stream import flip
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = pytest.mark.processes
STEPS, BAD_STEP = 6, 3


class StopAfter(NullObserver):
    """Asks to stop before step `steps`."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def should_stop(self):
        self.left -= 1
        return self.left < 0


def config_of(shards: Path, **data):
    config = config_for(shards, zero_stage=1, log_every=1)
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def two_workers(
    rank: int, world: int, damaged: Path, ruined: Path, repairable: Path, root: Path
) -> tuple[list[TrainResult], str, dict]:
    import torch.distributed as dist

    whole = train(config_of(damaged), root / "whole", StopAfter(100))
    try:
        message = str(train(config_of(ruined), root / "ruined", NullObserver()))
    except DataError as error:
        message = str(error)
    first = train(config_of(repairable), root / "replayed", StopAfter(BAD_STEP + 2))
    if rank == 0:  # the step with the substitute is trained again, and meanwhile the record is back
        shutil.rmtree(first.checkpoint)
        flip(repairable, ShardSet.open(repairable), victim(repairable))
    dist.barrier()
    second = train(config_of(repairable), root / "replayed", NullObserver())
    return [whole, first, second], message


def victim(shards: Path, step: int = BAD_STEP) -> int:
    """Row read by the second of two ranks at a step."""
    return int(open_data(config_of(shards))[2].batch(step)[-2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("quarantine")
    damaged = make_shards(root / "shards")
    ruined, repairable = (shutil.copytree(damaged, root / name) for name in ("ruined-shards", "repairable-shards"))
    for folder, rows in (
        (damaged, [victim(damaged)]),
        (repairable, [victim(damaged)]),
        (ruined, [victim(ruined), victim(ruined, 1)]),
    ):
        for row in rows:
            flip(folder, ShardSet.open(folder), row)
    return root, damaged, run_ranks(2, two_workers, damaged, ruined, repairable, root, init=False, deadline=100)


def lines(root: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (root / name / QUARANTINE).read_text().splitlines()]


@pytest.mark.slow
def test_both_ranks_go_on_with_the_same_records_and_the_quarantine_names_the_damaged_one(runs):
    root, shards, ranks = runs
    _, _, order = open_data(config_of(shards))
    row = victim(shards)
    (line,) = lines(root, "whole")
    shard_set = ShardSet.open(shards)
    assert (line["step"], line["row"], line["key"], line["rank"]) == (BAD_STEP, row, shard_set.key(row), 1)
    assert line["shard"] == shard_set.shard_names[shard_set.shard[row]] and "crc32" in line["problem"]
    digest = EMPTY_DIGEST
    for step in range(STEPS):
        rows = order.batch(step)
        for position, other in substitutes(order, step, {row: BAD_STEP}).items():
            assert other == line["substitute"] or step != BAD_STEP
            rows[position] = other
        digest = chain_digest(digest, rows)
    assert [results[0].digest for results, _ in ranks] == [digest, digest]
    assert [results[0].steps for results, _ in ranks] == [STEPS, STEPS]
    figures = {line["step"]: line for line in read_trace(root / "whole")}
    assert [figures[step]["data_quarantined"] for step in (BAD_STEP, BAD_STEP + 1, STEPS)] == [0.0, 1.0, 1.0]
    assert figures[STEPS]["data_slowest_read_seconds"] > 0 and figures[STEPS]["data_slow_reads"] == 0


def test_a_resumed_run_uses_the_same_substitutes_even_when_the_record_is_back(runs):
    root, _, ranks = runs
    assert [(results[1].steps, results[2].resumed_from) for results, _ in ranks] == [(BAD_STEP + 2, BAD_STEP)] * 2
    whole, replayed = read_trace(root / "whole"), read_trace(root / "replayed")
    assert [(line["loss"], line["digest"]) for line in replayed] == [(line["loss"], line["digest"]) for line in whole]
    assert len(whole) == STEPS and lines(root, "replayed") == lines(root, "whole")


def test_beyond_the_budget_all_ranks_stop_and_name_shards_and_records(runs):
    root, _, ranks = runs
    first, second = (message for _, message in ranks)
    assert first == second
    assert "2 of 60 selected records could not be read, data.max_bad_fraction 0.001 allows 1" in first
    for line in lines(root, "ruined"):
        assert line["key"] in first and line["shard"] in first
    assert [(line["step"], line["substitute"] is None) for line in lines(root, "ruined")] == [
        (1, False),
        (BAD_STEP, True),
    ]
    assert "last: record" in first and "crc32" in first and "shards verify" in first and QUARANTINE in first
    assert len(read_trace(root / "ruined")) == BAD_STEP  # the step that broke the budget was not trained


def test_the_budget_is_a_fraction_but_at_least_one_record_unless_it_is_zero():
    assert [quarantine.allowed_bad(fraction, 5000) for fraction in (0, 1e-6, 0.001, 0.5)] == [0, 1, 5, 2500]


SAMPLE = {"position": 1, "row": 7, "key": "k", "shard": "s", "offset": 0, "rank": 0, "problem": "p"}
WHOLE = {"fault": "record", "selection": "mine"}


def steps_of(run_dir: Path) -> dict[int, int]:
    return {row: entry.step for row, entry in quarantine.read_quarantine(run_dir, "mine").items()}


def test_lines_of_another_selection_or_cut_short_do_not_count(tmp_path):
    quarantine._append(
        tmp_path / QUARANTINE,
        [{"step": 4, **SAMPLE, **WHOLE}, {"step": 1, **SAMPLE, "selection": "other"}],
    )
    with (tmp_path / QUARANTINE).open("a") as file:
        file.write('{"step": 2, "row"')
    assert steps_of(tmp_path) == {7: 4}
    quarantine._append(tmp_path / QUARANTINE, [{"step": 3, **SAMPLE, **WHOLE}])
    assert steps_of(tmp_path) == {7: 3}


def test_lines_that_are_no_text_or_of_something_else_are_named_and_lose_no_entry(tmp_path, caplog):
    path = tmp_path / QUARANTINE
    strange = [
        b"\xff\xfe junk", b"\0" * 100, b"", b"[" * 100_000, b"null", b'{"selection": "mine"}',
        json.dumps({"step": 2, **SAMPLE, **WHOLE, "row": -1}).encode(),
        json.dumps({"step": 2, **SAMPLE, **WHOLE, "row": True}).encode(),
        json.dumps({"step": 1.5, **SAMPLE, **WHOLE}).encode(),
    ]  # fmt: skip
    good = [json.dumps({"step": 4, **SAMPLE, **WHOLE, "row": row}).encode() for row in (7, 9)]
    content = b"\n".join([*strange, good[0], *strange, good[1]])  # the last one has lost its end of line
    path.write_bytes(content)
    assert steps_of(tmp_path) == {7: 4, 9: 4}
    assert f"file={path} lines=1,2,3,4,5,6,7,8,9,11,..." in caplog.text
    quarantine._append(path, [{"step": 6, **SAMPLE, **WHOLE, "row": 11}])
    assert path.read_bytes().startswith(content) and steps_of(tmp_path) == {7: 4, 9: 4, 11: 6}


def test_what_lies_in_the_place_of_the_file_is_named_and_not_waited_for(tmp_path):
    (tmp_path / "folder" / QUARANTINE).mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / QUARANTINE)
    for name in ("folder", "pipe"):
        with pytest.raises(DataError, match=rf"{name}/quarantine\.jsonl cannot be read: .*no regular file"):
            quarantine.read_quarantine(tmp_path / name, "mine")
    with pytest.raises(DataError, match=r"cannot write .*quarantine\.jsonl: .*Is a directory") as caught:
        quarantine._append(tmp_path / "folder" / QUARANTINE, [{}])
    assert "run the same command again" in caught.value.remedy
