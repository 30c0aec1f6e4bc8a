"""What can be found wrong before a worker starts is found then, and a run remembers where it started from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.registry.registry import register
from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.runs.lifecycle import Tracking, _with_local_start, _write_page, prepare, run
from cardialign.cluster.tracking.state import TrackingState
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.files import CONFIG, EARLIER, PAGE, RESULT, START, START_NOTE, STOP, TRACKING
from cardialign.pretrain.run.integrity import write_digests
from cardialign.pretrain.training import initialise
from cardialign.pretrain.training.checkpoints.files import committed_path
from cardialign.pretrain.training.data import open_data
from tests.support.checkpoints import flip, nothing_changes, write_checkpoint
from tests.support.tiny_set import SMALL
from tests.support.tiny_shards import HashingEncoder


def config_of(shards: Path, *overrides: str) -> RunConfig:
    return load_config("simclr-tiny", [*SMALL, f"data.shards={shards}", *overrides])


def test_a_start_that_is_none_is_named_before_ray(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from: .* is no run directory, no checkpoint and no exported encoder"):
        prepare(config_of(shards, f"init_from={tmp_path}"))
    with pytest.raises(UserError, match=r"init_from: .* is no run directory"):
        prepare(config_of(shards, f"init_from={shards}"))


def test_a_start_from_another_encoder_is_named_before_ray(shards: Path, tmp_path: Path) -> None:
    spec = ShardSet.open(shards).spec
    config = config_of(shards, "encoder.width=24")
    weights = create_method(config, spec).state_dict()
    export_encoder(config, weights, tmp_path / "narrow", training={}, spec=spec, program=False)
    with pytest.raises(
        UserError, match=r"(?s)init_from: the encoder of .*narrow is another one:.*encoder\.width is 32"
    ):
        prepare(config_of(shards, "encoder.width=32", f"init_from={tmp_path / 'narrow'}"))
    assert prepare(config_of(shards, "encoder.width=24", f"init_from={tmp_path / 'narrow'}"))["records"] > 0


def test_a_stage_1_that_does_not_serve_stage_2_is_named_before_ray(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own encoder begins anew, so that the quantiser's weights are all there is to compare."""
    spec, words = ShardSet.open(shards).spec, "method.words=24"
    first = load_config("heartlang-quantiser-tiny", [*SMALL, f"data.shards={shards}", words])
    method = create_method(first, spec)
    method.state_dict()["words.book.started"].fill_(1)
    second = [*SMALL, f"data.shards={shards}", f"init_from={tmp_path / 'first'}"]
    with monkeypatch.context() as patched:
        patched.setattr(initialise, "open_start", lambda source: initialise.start_of(method, first, spec))
        assert prepare(load_config("heartlang-tiny", [*second, words]))["records"] > 0
        with pytest.raises(UserError, match=r"its quantiser is another one .*\n.*words \(25, 32\): the source has"):
            prepare(load_config("heartlang-tiny", [*second, "method.words=25"]))
    export_encoder(first, method.state_dict(), tmp_path / "export", training={}, spec=spec, program=False)
    with pytest.raises(UserError, match="the start has no words for heartbeats"):
        prepare(load_config("heartlang-tiny", [*second, words, f"init_from={tmp_path / 'export'}"]))


def test_a_method_that_cannot_use_the_encoder_is_named_before_ray(shards: Path) -> None:
    config = load_config("st-mem-tiny", [*SMALL, f"data.shards={shards}", "encoder={name: resnet1d}"])
    with pytest.raises(UsageError, match=r"set encoder\.name to vit1d"):
        prepare(config)


def test_a_method_without_reports_asks_for_no_text_bank(shards: Path) -> None:
    facts = prepare(config_of(shards))
    assert facts["records"] > 0 and facts["text_encoder_fingerprint"] == ""


def test_the_data_sets_of_a_run_are_named_with_how_much_of_each_is_read(shards: Path) -> None:
    opened = ShardSet.open(shards)
    (told,) = prepare(config_of(shards, "data.folds=[1, 2, 3]"))["datasets"]
    facts = json.loads(told["profile"])
    assert (told["name"], told["context"]) == (shards.name, "training") and facts["fingerprint"] == opened.fingerprint
    assert facts["records"] == int((opened.fold <= 3).sum()) < facts["records_of_the_set"] == len(opened)
    assert facts["folds"] == [1, 2, 3] and json.loads(told["source"])["uri"] == str(shards)


def test_a_page_that_cannot_be_made_is_told_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoilt(run_dir: Path, out: Path) -> None:
        raise ZeroDivisionError("of a chart")

    _write_page(tmp_path, Tracking(page=spoilt))
    assert not caplog.text, "a run that never began has no page"
    (tmp_path / CONFIG).write_text("{}")
    _write_page(tmp_path, Tracking(page=spoilt))
    assert "page=not-written" in caplog.text and "of a chart" in caplog.text and not (tmp_path / PAGE).exists()
    _write_page(tmp_path, Tracking(page=lambda run_dir, out: out.write_text(f"of {run_dir.name}")))
    assert (tmp_path / PAGE).read_text() == f"of {tmp_path.name}"


def test_a_damaged_text_bank_is_named_before_ray_and_not_taken_for_a_missing_one(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    config = load_config("cardialign-demo", [*SMALL, f"data.shards={folder}"])
    file = build_text_bank(ShardSet.open(folder), HashingEncoder()).path / "mean.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"mean\.npy is not the one the bank was built with") as caught:
        prepare(config)
    assert "cardialign text-bank build" in caught.value.remedy


def test_a_store_that_does_not_take_the_run_ends_it_before_it_begins(shards: Path, tmp_path: Path) -> None:
    """A wrong password, a host that is gone: the next start is the first one."""
    (tmp_path / "no.db").mkdir()
    with pytest.raises(UserError, match=r"no\.db"):
        run(config_of(shards), tmp_path / "run", Tracking(f"sqlite:///{tmp_path / 'no.db'}"))
    assert not (tmp_path / "run").exists()


def test_a_name_that_cannot_be_registered_ends_the_run_before_it_begins(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a registered encoder"):
        run(config_of(shards), tmp_path / "run", register_as="bad/name:x")
    assert not (tmp_path / "run").exists()


def test_a_start_from_the_registry_is_pulled_once_and_noted(exported: Path, tmp_path: Path, uri: str) -> None:
    version = register(exported, "begun", uri)
    (tmp_path / "run").mkdir()
    config = load_config("cardialign-demo", [*SMALL, "init_from=models:/begun@candidate"])
    local = _with_local_start(config, tmp_path / "run", uri)
    assert local.init_from == str(tmp_path / "run" / START)
    note = json.loads((tmp_path / "run" / START_NOTE).read_text())
    assert (note["asked"], note["name"], note["version"]) == ("models:/begun@candidate", "begun", version)
    assert len(note["digest"]) == 64
    longer = shutil.copytree(exported, tmp_path / "longer")
    (longer / "provenance.json").write_text("{}")
    (longer / "digests.json").unlink()
    write_digests(longer)
    assert register(longer, "begun", uri) == 2  # the alias moves on, the run does not
    assert _with_local_start(config, tmp_path / "run", uri) == local
    assert json.loads((tmp_path / "run" / START_NOTE).read_text()) == note


def finished_run(config: RunConfig, run_dir: Path) -> Path:
    """The run directory of a finished run of `config`: checkpoint, result, configuration, requests."""
    _, selection, _ = open_data(config)
    write_checkpoint(run_dir, 60, config, selection=selection.fingerprint)
    (run_dir / CONFIG).write_text(json.dumps(config.resolved()))
    for name in (RESULT, TRACKING, STOP):
        (run_dir / name).write_text("{}")
    return run_dir


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.normalisation=minmax", "data.normalisation was"),
        ("training.steps=90", "--extend"),
        ("seed=9", "seed was"),
    ],
)
def test_a_refused_start_changes_neither_run_directory_nor_tracking_store(
    shards: Path, tmp_path: Path, change: str, said: str
) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    store = tmp_path / "store" / "mlflow.db"
    with nothing_changes(tmp_path):
        with pytest.raises(UserError, match=said):
            run(config_of(shards, change), run_dir, Tracking(f"sqlite:///{store}"))
        with pytest.raises(UserError, match=said):
            train_on_ray(config_of(shards, change), run_dir, workers=1)


def test_a_run_without_a_checkpoint_that_serves_is_refused_by_the_driver_too(shards: Path, tmp_path: Path) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    flip(committed_path(run_dir, 60) / "engine" / "model.pt")
    with nothing_changes(tmp_path), pytest.raises(UserError, match="no checkpoint of it can be continued"):
        run(config_of(shards), run_dir, Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}"))


def test_another_start_from_the_registry_is_refused_before_it_is_fetched(shards: Path, tmp_path: Path) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    other = config_of(shards, "init_from=models:/some@candidate")
    with nothing_changes(tmp_path), pytest.raises(UserError, match="init_from was None"):
        run(other, run_dir, Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}"))


def test_what_would_keep_the_encoder_from_its_place_is_found_before_the_training(shards: Path, tmp_path: Path) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    (run_dir / "export").write_text("a file of mine")
    with nothing_changes(tmp_path), pytest.raises(UserError, match="export holds something that is no encoder"):
        run(config_of(shards), run_dir, Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}"))


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that has been accepted ends where it would begin to cost seconds."""

    def refuse(*_: object) -> None:
        raise UserError("no cluster today")

    monkeypatch.setattr("cardialign.cluster.runs.driver.ray_session", refuse)


def untracked(folder: Path) -> Tracking:
    return Tracking(f"sqlite:///{folder / 'absent' / 'mlflow.db'}", optional=True)


@pytest.mark.usefixtures("no_cluster")
def test_a_start_that_the_cluster_refuses_leaves_a_finished_run_finished(shards: Path, tmp_path: Path) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    (run_dir / TRACKING).unlink()
    with pytest.raises(UserError, match="no cluster today"):
        run(config_of(shards), run_dir, untracked(tmp_path))
    assert (run_dir / RESULT).is_file() and (run_dir / STOP).is_file(), "nothing of the run was cleared"
    state = TrackingState.load(run_dir)
    assert state is not None and state.status == "FINISHED"


@pytest.mark.usefixtures("no_cluster")
def test_both_words_for_a_run_that_is_there_reach_the_judge_from_the_command_line(
    shards: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    run_dir = finished_run(config_of(shards), tmp_path / "run")
    (run_dir / TRACKING).unlink()
    words = ["pretrain", "--recipe", "simclr-tiny", "--shards", shards, "--run-dir", run_dir, "--tracking-optional"]
    words += ["--tracking-uri", untracked(tmp_path).uri]
    words += [part for one in [*SMALL, "training.steps=90"] for part in ("--set", one)]
    assert "--extend" in cardialign(*words).json["remedy"]
    assert cardialign(*words, "--extend").json["problem"] == "no cluster today"
    assert not (run_dir / EARLIER).exists()
    assert cardialign(*words, "--start-over").json["problem"] == "no cluster today"
    assert committed_path(run_dir / EARLIER / "1", 60).is_dir() and not committed_path(run_dir, 60).exists()
    assert cardialign(*words, "--extend", "--start-over", plain=True).code == 2


@pytest.mark.parametrize("workers", [17, Sizes(1, 17), Sizes(17, 40)])
def test_more_workers_than_rows_are_refused_with_the_numbers_that_are_legal(
    shards: Path, tmp_path: Path, workers: int | Sizes
) -> None:
    with pytest.raises(UsageError, match=r"global_batch 16 is smaller than the (17|40) workers") as refused:
        run(config_of(shards), tmp_path / "run", workers=workers)
    assert "legal are 1 to 16, with equal rows for all: 1, 2, 4, 8, 16" in refused.value.remedy
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="less than 1"):
        run(config_of(shards), tmp_path / "run", workers=0)
