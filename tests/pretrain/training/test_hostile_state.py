"""What anybody can have written into a run directory ends in a sentence that names the file, and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.files import CONFIG
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import STATE, CheckpointError
from cardialign.pretrain.training.checkpoints.judge import Facts, Verdict, judge
from tests.support.checkpoints import SELECTION, nothing_changes, resealed, write_checkpoint

CONFIGURATION = RunConfig(training={"steps": 100, "checkpoint_every": 20, "global_batch": 8})
HUGE = "9" * 5000


def deep(levels: int) -> str:
    return '{"a": ' * levels + "1" + "}" * levels


NO_OBJECT = [
    b"",
    b"{",
    b'{"step": 20',
    b"null",
    b"[]",
    b"20",
    b'"text"',
    b"\xef\xbb\xbf{}",
    '{"step": 20}'.encode("utf-16"),
]
NO_OBJECT += [
    b"\xff\xfe\x00",
    "{é}".encode("latin-1"),
    deep(10_000).encode(),
    b"[" * 100_000,
    HUGE.encode(),
    b"\0" * 64,
]
ANYTHING: list[Any] = [None, True, -1, 0.5, 1e300, float("nan"), float("inf"), 10**30, "", "x", "\ud800", [], [[]], {}]
ANYTHING += [[1, 2], {"a": 1}, json.loads(deep(300))]


def verdict(run_dir: Path, config: RunConfig = CONFIGURATION) -> Verdict:
    return judge(run_dir, config, Facts(SELECTION, 80, 1))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    write_checkpoint(run_dir, 20, CONFIGURATION)
    (run_dir / CONFIG).write_text(json.dumps(CONFIGURATION.resolved()))
    with TraceWriter(run_dir, 0) as trace:
        for step in range(1, 21):
            trace.write(step, {"loss": 1.0})
    return run_dir


def states(sound: Path) -> dict[str, Any]:
    return json.loads((files.committed_path(sound, 20) / STATE).read_text())


WRONG = {
    "step": [-1, 19, 21, True, 20.0, "20", None, [20], 10**30],
    "world_size": [0, -1, True, 1.0, "1", None, {}],
    "order_version": ["1", None, 1.5, []],
    "digest": [1, None, "", [], "\ud800", "x" * 10_000],
    "selection_fingerprint": [1, None, [], {}, True],
    "config": [None, [], "x", 1, json.loads(deep(60))],
    "loss": ["x", float("nan"), float("inf"), True, []],
    "spec": [[], "x", {}, {"rate": 1}, *({"sampling_rate": rate, "seconds": 10} for rate in (-1, "x", float("nan")))],
    "shards_fingerprint": [1, []],
    "bank_digest": [1, {}],
    "plan": [
        "x",
        [],
        {},
        [1],
        [[0]],
        [["0", "100"]],
        [[0, 100, 3]],
        [[0.0, 100.0]],
        [[5, 100]],
        [[0, -1]],
        [[0, 10]],
        [[0, 100], [30, 200]],
        [[0, 100], [10, 50], [5, 100]],
        [[0, True]],
    ],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_that_no_run_writes_is_named_though_the_digests_fit(sound: Path, tmp_path: Path, key: str) -> None:
    for number, value in enumerate(WRONG[key]):
        run_dir = tmp_path / str(number)
        shutil.copytree(sound, run_dir)
        resealed(files.committed_path(run_dir, 20), json.dumps({**states(sound), key: value}).encode())
        with nothing_changes(run_dir), pytest.raises(CheckpointError) as caught:
            verdict(run_dir)
        assert STATE in caught.value.problem and key in caught.value.problem, value
        assert "release that wrote it" in caught.value.remedy


def test_a_key_that_is_missing_or_unknown_is_named(sound: Path, tmp_path: Path) -> None:
    for key in ("step", "digest", "config", "selection_fingerprint", "world_size", "order_version"):
        run_dir = tmp_path / key
        shutil.copytree(sound, run_dir)
        resealed(
            files.committed_path(run_dir, 20), json.dumps({k: v for k, v in states(sound).items() if k != key}).encode()
        )
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            verdict(run_dir)
    shutil.copytree(sound, tmp_path / "more")
    resealed(files.committed_path(tmp_path / "more", 20), json.dumps({**states(sound), "__class__": 1}).encode())
    with pytest.raises(CheckpointError, match="unknown key '__class__'"):
        verdict(tmp_path / "more")


def test_a_state_that_is_no_json_object_is_named(sound: Path, tmp_path: Path) -> None:
    for number, content in enumerate(NO_OBJECT):
        run_dir = tmp_path / str(number)
        shutil.copytree(sound, run_dir)
        resealed(files.committed_path(run_dir, 20), content)
        with nothing_changes(run_dir), pytest.raises(CheckpointError, match=STATE):
            verdict(run_dir)


def said_or_found(run_dir: Path) -> UserError | Verdict:
    try:
        return verdict(run_dir)
    except UserError as error:
        return error


@pytest.mark.slow
def test_a_configuration_of_wrong_types_in_a_checkpoint_is_another_run_or_named(sound: Path, tmp_path: Path) -> None:
    own = states(sound)
    for number, value in enumerate((None, -1, float("nan"), "x", [], [1, 2], {"a": 1})):
        for key in ("training", "data", "encoder", "text", "method", "seed", "model", "name"):
            run_dir = tmp_path / f"{number}-{key}"
            shutil.copytree(sound, run_dir)
            resealed(
                files.committed_path(run_dir, 20), json.dumps({**own, "config": {**own["config"], key: value}}).encode()
            )
            with nothing_changes(run_dir):
                found = said_or_found(run_dir)
            if isinstance(found, UserError):
                assert str(files.committed_path(run_dir, 20)) in found.problem and found.remedy, (key, value)
            else:  # what it is by default, or what changes nothing
                assert found.plan == ((0, 100),) and (key == "name" or value in ({}, None)), (key, value)


def test_a_configuration_beside_the_checkpoints_is_not_needed_to_go_on(sound: Path, tmp_path: Path) -> None:
    """The checkpoint has its own; the file is written anew at the start."""
    for number, content in enumerate(NO_OBJECT):
        run_dir = tmp_path / str(number)
        shutil.copytree(sound, run_dir)
        (run_dir / CONFIG).write_bytes(content)
        state = verdict(run_dir).state
        assert state is not None and state.step == 20


def wrong_configurations() -> list[bytes]:
    good = json.loads(json.dumps(CONFIGURATION.resolved()))
    made = [json.dumps({**good, "training": value}).encode() for value in ANYTHING if value != {}]
    for value in (None, True, 0, -1, 0.5, float("nan"), "x", [], {}):
        made.append(json.dumps({**good, "training": {**good["training"], "checkpoint_every": value}}).encode())
    return [*NO_OBJECT, *made]


def test_where_checkpoints_are_gone_a_configuration_that_says_nothing_is_no_leave_to_begin_again(
    sound: Path, tmp_path: Path
) -> None:
    """Asked for longer stretches than the run had, the start would otherwise forget its 20 steps without a word."""
    longer = CONFIGURATION.model_copy(
        update={"training": CONFIGURATION.training.model_copy(update={"checkpoint_every": 50})}
    )
    for number, content in enumerate(wrong_configurations()):
        run_dir = tmp_path / str(number)
        shutil.copytree(sound, run_dir)
        files.remove(files.committed_path(run_dir, 20))
        (run_dir / CONFIG).write_bytes(content)
        with nothing_changes(run_dir), pytest.raises(CheckpointError) as caught:
            verdict(run_dir, longer)
        assert CONFIG in caught.value.problem and "--start-over" in caught.value.remedy, content[:80]
