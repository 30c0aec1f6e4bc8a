"""What anybody can have written into a run directory ends in a sentence that names the file, and changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.cluster.main import main
from cardialign.data_shards.errors import FAILED, UserError
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.files import CONFIG
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import STATE, CheckpointError
from cardialign.pretrain.training.checkpoints.judge import Facts, Verdict, judge
from cardialign.pretrain.training.checkpoints.pickles import check_pickles
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


class Run:
    """What a pickle calls when it is read."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


def saved(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def plain(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def in_an_archive(path: Path, content: bytes, name: str = "data.pkl") -> None:
    saved(path, {"x": 1})
    with zipfile.ZipFile(path) as archive:
        members = {each.rpartition("/")[2]: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, held in {**members, name: content}.items():
            archive.writestr(f"model/{member}", held)


CODE: dict[str, Callable[[Path], None]] = {
    "a shell": lambda p: saved(p, {"module": {}, "x": Run(os.system, ("true",))}),
    "eval": lambda p: saved(p, [Run(eval, ("1",))]),
    "a deep one": lambda p: saved(p, {"a": [{"b": (Run(os.mkdir, ("/x",)), 1)}]}),
    "an attribute": lambda p: saved(p, Run(getattr, ({}, "keys"))),
    "a class of the library": lambda p: saved(p, Run(type(Path()), ("/",))),
    "torch.load itself": lambda p: saved(p, Run(torch.load, ("/x",))),
    "protocol 4": lambda p: in_an_archive(p, pickle.dumps(Run(os.system, ("true",)), protocol=4)),
    "protocol 0": lambda p: in_an_archive(p, b"(S'true'\nios\nsystem\n."),
    "a registered extension": lambda p: in_an_archive(p, b"\x80\x02\x82\x01."),
    "what is no pickle": lambda p: in_an_archive(p, b"\xff\xff"),
    "a plain pickle": lambda p: plain(p, pickle.dumps(Run(os.system, ("true",)))),
    "the older format": lambda p: torch.save({"x": 1}, p, _use_new_zipfile_serialization=False),
    "a program": lambda p: in_an_archive(p, b"", "constants.pkl"),
    "an empty file": lambda p: plain(p, b""),
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("name", ["engine/zero_pp_rank_0_mp_rank_00_optim_states.pt", "rng/rank-00000.pt"])
def test_a_sealed_checkpoint_that_would_import_anything_is_refused_before_it_is_read(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    CODE[kind](tmp_path / name)
    for door in ("torch.load", "os.system", "pickle.Unpickler"):
        monkeypatch.setattr(door, None)
    with pytest.raises(CheckpointError, match=name) as caught:
        check_pickles(tmp_path, [name])
    assert caught.value.remedy and len(caught.value.problem) < 400


def test_what_a_run_writes_is_let_through(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    engine = {
        "module": {"w": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))},
        "shapes": [OrderedDict(w=torch.Size([2]))],
        "loss_scaler": LossScaler(1.0),
        "stage": ZeroStageEnum(2),
        "slices": [OrderedDict(w=fragment_address(numel=2, start=0))],
        "averages": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
    }
    saved(tmp_path / "engine/model.pt", engine)
    check_pickles(tmp_path, ["engine/model.pt", "manifest.json"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.update(summary={"step": [], "bytes": {}, "created": 5, "path": None}),
        lambda m: m.update(created={"x": 1}),
        lambda m: m["files"].update({"a": {"sha256": "f" * 64, "bytes": 10**400}}),
        lambda m: m["files"].update({"a": {"sha256": "f" * 64, "bytes": -1}}),
        lambda m: m["files"].update({"a": {"sha256": "../../x", "bytes": 1}}),
        lambda m: m["files"].update({"a\x1b[2J": {"sha256": "f" * 64, "bytes": 1}}),
    ],
)
def test_one_sealed_manifest_that_no_run_wrote_hides_no_other_checkpoint(
    sound: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(sound, tmp_path / "run")
    write_checkpoint(run, 40, CONFIGURATION)
    path = files.committed_path(run, 40) / files.MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("self")
    spoil(manifest)
    path.write_text(json.dumps({**manifest, "self": files._manifest_digest(manifest)}))
    assert main(["checkpoints", "list", str(run)]) == 0
    told = capsys.readouterr().out
    assert "step       20" in told and "step       40" in told and "\x1b" not in told


def test_a_pipe_in_the_place_of_a_manifest_holds_nobody_up(sound: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sound, tmp_path / "run")
    path = files.committed_path(run, 20) / files.MANIFEST
    path.unlink()
    os.mkfifo(path)
    assert [each.step for each in files.list_checkpoints(run)] == [20]


def test_verify_says_what_a_start_would_refuse_of_a_checkpoint_whose_files_are_as_they_were_sealed(
    tmp_path: Path,
) -> None:
    from cardialign.cluster.commands.checkpoints.verify import run

    for step, content in ((1, {"x": 1}), (2, Run(os.system, ("true",)))):
        folder = files.temporary_path(tmp_path, step)
        saved(folder / "engine" / "model.pt", content)
        (folder / files.STATE).write_text("{}")
        files.commit(tmp_path, step, files.seal(folder, files.files_below(folder)), {})
    told = run(argparse.Namespace(run_dir=tmp_path))
    assert [row["condition"] for row in told["checkpoints"]] == ["verified", "foreign"]
    assert "would import" in told["checkpoints"][1]["problems"][0] and told["exit_code"] == FAILED
