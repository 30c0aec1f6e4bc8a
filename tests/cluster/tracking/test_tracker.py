"""MLflow replay against a real SQLite store: nothing lost, nothing doubled; a store that is away stops no training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.replay import Replay, sync
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.tracking.state import TrackingState, flatten
from cardialign.cluster.tracking.tracker import RunTracker
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import METRICS, TRACKING


def spool(run_dir: Path, first: int, last: int) -> None:
    for step in range(first, last + 1):
        append_line(run_dir / METRICS, {"step": step, "loss": 3.0 / step, "digest": "abc", "nan": float("nan")})


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow_store.open_client(uri).get_metric_history(run_id, key)]


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, 3.0 / step) for step in range(1, last + 1)]


def test_a_run_is_logged_whole_with_parameters_tags_and_system_metrics(tmp_path: Path, uri: str) -> None:
    tracker = RunTracker(tmp_path / "run", uri)
    tracker.start("trial", {"optimizer": {"lr": 0.002}, "data": {"folds": None}}, {"data.fingerprint": "f00d"})
    spool(tmp_path / "run", 1, 20)
    tracker._sample()
    assert tracker.finish("FINISHED", {"run/records_per_second": 12.5})
    run = mlflow_store.open_client(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.002" and run.data.params["data.folds"] == "null"
    assert run.data.tags["data.fingerprint"] == "f00d"
    assert run.data.metrics["run/records_per_second"] == 12.5
    assert run.data.metrics["system/driver_rss_mib"] > 10
    assert "digest" not in run.data.metrics and "nan" not in run.data.metrics
    assert history(uri, tracker.run_id) == expected(20)


def test_replaying_again_changes_nothing(tmp_path: Path, uri: str) -> None:
    tracker = RunTracker(tmp_path / "run", uri)
    tracker.start("trial", {}, {})
    spool(tmp_path / "run", 1, 9)
    tracker.finish("FINISHED")
    before = history(uri, tracker.run_id)
    assert sync(tmp_path / "run")["values_sent"] == 0
    assert history(uri, tracker.run_id) == before == expected(9)


def test_a_driver_that_died_between_sending_and_noting_doubles_nothing(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    state = TrackingState(uri, "cardialign", "trial")
    replay = Replay(run_dir, state, mlflow_store.open_client(uri))
    replay.open_run()
    spool(run_dir, 1, 30)

    class DiedError(Exception):
        pass

    def die(lines: Any) -> None:
        raise DiedError

    monkeypatch.setattr(replay.readers[0], "take", die)
    with pytest.raises(DiedError):  # the batch has reached MLflow, the cursor has not moved
        replay.send_new()
    assert len(history(uri, state.run_id)) == 30
    spool(run_dir, 31, 40)

    assert sync(run_dir)["steps"] == 40
    assert history(uri, state.run_id) == expected(40)


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path, uri: str) -> None:
    run_dir = tmp_path / "run"
    first = RunTracker(run_dir, uri)
    first.start("trial", {"training": {"zero_stage": 2}}, {})
    spool(run_dir, 1, 13)
    first.finish("KILLED")
    (run_dir / METRICS).unlink()  # the loop writes a new file that ends at its checkpoint and goes on
    spool(run_dir, 1, 25)
    second = RunTracker(run_dir, uri)
    second.start("trial", {"training": {"zero_stage": 1}}, {})
    second.finish("FINISHED")
    assert second.run_id == first.run_id
    assert history(uri, second.run_id) == expected(25)
    run = mlflow_store.open_client(uri).get_run(second.run_id)
    assert run.data.params["training.zero_stage"] == "2" and run.data.tags["resumed_with.training.zero_stage"] == "1"


def test_a_database_that_cannot_be_opened_is_named_before_training(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database, and long enough to be read as one" * 40)
    for path, reason in ((broken, "not a database"), (tmp_path / "absent" / "mlflow.db", "does not exist")):
        with pytest.raises(UserError) as raised:
            RunTracker(tmp_path / "run", f"sqlite:///{path}").start("trial", {}, {})
        assert str(path) in raised.value.problem and reason in raised.value.problem
        assert "--tracking-optional" in raised.value.remedy


def test_a_plain_folder_and_a_silent_server_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain folder"):
        mlflow_store.open_client(str(tmp_path))
    with pytest.raises(UserError, match=r"htp://host begins with 'htp' \(did you mean 'http'\?\)") as raised:
        mlflow_store.open_client("htp://host")
    assert "http://HOST:PORT" in raised.value.remedy and "[" not in raised.value.problem, "no list of a library's"
    for address, why in (
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://nowhere.invalid", "not known|resolution"),
    ):
        with pytest.raises(UserError, match=f"does not answer: [^()]*({why})") as raised:
            mlflow_store.open_client(address)
        assert raised.value.remedy.startswith("see that it runs"), "who looks at the registry trains nothing"


@pytest.mark.parametrize("letter", ["\n", "\u20ac"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    """The library that would send it refuses it with the token in its words."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"tok-en-123{letter}tok-en-123")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_TOKEN holds a line break") as raised:
        RunTracker(tmp_path / "run", "http://127.0.0.1:1").start("trial", {}, {})
    assert "tok-en" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "SQLite:///:memory:",
        "sqlite:///?timeout=5",
        "sqlite+pysqlite://",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:runs?mode=memory&uri=true",
    ],
)
def test_a_store_that_is_gone_with_the_command_is_refused_before_training(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="in memory") as raised:
        RunTracker(tmp_path / "run", uri).start("trial", {}, {})
    assert "sqlite:///mlflow.db" in raised.value.remedy
    assert list(tmp_path.glob("**/*.db")) == [] and not (tmp_path / "run" / TRACKING).exists()


@pytest.mark.parametrize("uri", ["", " ", "\n"])
def test_an_empty_address_is_called_empty(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="is empty") as raised:
        RunTracker(tmp_path / "run", uri).start("trial", {}, {})
    assert "--tracking-uri" in raised.value.remedy


@pytest.mark.parametrize("uri", ["localhost:5000", "127.0.0.1:5000", "mlflow.example.org:80/path"])
def test_a_server_without_a_scheme_is_told_how_to_write_it(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError) as raised:
        RunTracker(tmp_path / "run", uri).start("trial", {}, {})
    assert uri in raised.value.problem and f"http://{uri}" in raised.value.remedy


@pytest.mark.parametrize(
    ("variable", "value"), [("MLFLOW_RUN_ID", "0" * 32), ("MLFLOW_EXPERIMENT_ID", "77"), ("MLFLOW_EXPERIMENT_ID", "x")]
)
def test_a_variable_that_names_what_is_not_there_is_to_be_set_anew(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as raised:
        RunTracker(tmp_path / "run", uri).start("trial", {}, {})
    assert variable in raised.value.problem + raised.value.remedy
    assert f"set {variable}" in raised.value.remedy and "tracking-uri" not in raised.value.remedy


def test_a_copied_run_directory_gets_an_mlflow_run_of_its_own_and_a_moved_one_keeps_its(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = RunTracker(tmp_path / "run", uri)
    first.start("trial", {}, {})
    spool(tmp_path / "run", 1, 4)
    first.finish("FINISHED")
    copies = [Path(shutil.copytree(tmp_path / "run", tmp_path / name)) for name in ("copy", "other")]
    for copy in copies:
        spool(copy, 5, 7)
    second = RunTracker(copies[0], uri)
    second.start("trial", {}, {})
    second.finish("FINISHED")
    third = sync(copies[1])["run_id"]
    assert len({first.run_id, second.run_id, third}) == 3 and f"copy of {tmp_path / 'run'}" in caplog.text
    assert history(uri, first.run_id) == expected(4)
    assert history(uri, second.run_id) == history(uri, third) == expected(7)
    shutil.move(copies[0], tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert sync(tmp_path / "moved")["run_id"] == second.run_id and sync(copies[1])["run_id"] == third
    assert sync(tmp_path / "link")["run_id"] == first.run_id


def test_optional_tracking_spools_and_syncs_later(tmp_path: Path, empty_store: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "later"
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = RunTracker(run_dir, uri, optional=True)
    tracker.start("trial", {"seed": 4}, {"data.fingerprint": "f00d"})
    spool(run_dir, 1, 6)
    assert tracker.finish("FINISHED", {"run/restarts": 1.0}) is False

    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    synced = sync(run_dir)
    run = mlflow_store.open_client(uri).get_run(synced["run_id"])
    assert run.info.status == "FINISHED" and run.data.params["seed"] == "4" and run.data.metrics["run/restarts"] == 1.0
    assert history(uri, synced["run_id"]) == expected(6)


def test_a_store_that_goes_away_in_the_middle_loses_nothing(tmp_path: Path, uri: str) -> None:
    run_dir = tmp_path / "run"
    tracker = RunTracker(run_dir, uri)
    tracker.start("trial", {}, {})
    spool(run_dir, 1, 5)
    assert tracker.replay is not None
    tracker.replay.client = _Gone()  # type: ignore[assignment]
    spool(run_dir, 6, 10)
    assert tracker.finish("FINISHED") is False, "the rest waits in the spool"
    sync(run_dir)
    assert history(uri, tracker.run_id) == expected(10)


class _Gone:
    """A client whose every call fails, as one of a server that has gone."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the server has gone")


def test_a_folder_without_a_tracked_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=TRACKING):
        sync(tmp_path)


def test_flatten_writes_dotted_keys() -> None:
    assert flatten({"a": {"b": [1, 2], "c": None}, "d": "x"}) == {"a.b": "[1, 2]", "a.c": "null", "d": "x"}


def test_a_description_that_a_person_wrote_in_mlflow_is_not_replaced_by_the_next_start(
    tmp_path: Path, uri: str
) -> None:
    ours = {"mlflow.note.content": "cardialign pretrain", "mlflow.source.name": "cardialign pretrain", "own": "1"}
    first = RunTracker(tmp_path / "run", uri)
    first.start("trial", {}, ours)
    first.finish("KILLED")
    client = mlflow_store.open_client(uri)
    assert client.get_run(first.run_id).data.tags["mlflow.note.content"] == "cardialign pretrain"
    client.set_tag(first.run_id, "mlflow.note.content", "the one for the paper")
    again = RunTracker(tmp_path / "run", uri)
    again.start("trial", {}, {**ours, "own": "2"})
    again.finish("FINISHED")
    tags = client.get_run(again.run_id).data.tags
    assert again.run_id == first.run_id and tags["mlflow.note.content"] == "the one for the paper"
    assert tags["own"] == "2"
