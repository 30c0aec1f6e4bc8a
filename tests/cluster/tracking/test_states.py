"""Stores as people have them: what keeps one from taking a run is said before training; optional tracking goes on."""

from __future__ import annotations

import base64
import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.cluster.tracking.replay import sync
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.tracking.state import TrackingState
from cardialign.cluster.tracking.tracker import RunTracker
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import CONFIG, METRICS, TRACKING
from cardialign.pretrain.run.layout import RunDirectoryError
from cardialign.pretrain.run.lock import locked_run

LEADS = {"encoder": {"lead_groups": {"left (lateral)": ["I"]}}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACKING_URI", "REGISTRY_URI", "EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID", "TRACKING_TOKEN"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def started(run_dir: Path, uri: str, **options: Any) -> RunTracker:
    tracker = RunTracker(run_dir, uri, **options)
    tracker.start("trial", LEADS, {"data.fingerprint": "f00d"})
    return tracker


def deleted_experiment(run_dir: Path, uri: str) -> None:
    client = open_client(uri)
    client.delete_experiment(client.create_experiment("cardialign"))


def restored_experiment(run_dir: Path, uri: str) -> None:
    client = open_client(uri)
    client.restore_experiment(client.get_experiment_by_name("cardialign").experiment_id)


def deleted_run(run_dir: Path, uri: str) -> None:
    tracker = started(run_dir, uri)
    tracker.finish("FINISHED")
    open_client(uri).delete_run(tracker.run_id)


def restored_run(run_dir: Path, uri: str) -> None:
    state = TrackingState.load(run_dir)
    assert state is not None
    open_client(uri).restore_run(state.run_id)


def artifacts_away(run_dir: Path, uri: str) -> None:
    """A file where the artifacts of the experiment want a folder."""
    folder = run_dir.parent / "artifacts"
    folder.write_text("a file")
    open_client(uri).create_experiment("cardialign", artifact_location=folder.as_uri())


def artifacts_back(run_dir: Path, uri: str) -> None:
    (run_dir.parent / "artifacts").unlink()


def newer_schema(run_dir: Path, uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        (before,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        (run_dir.parent / "schema").write_text(before)
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def schema_of_here(run_dir: Path, uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", ((run_dir.parent / "schema").read_text(),))


STATES = {
    "deleted experiment": (deleted_experiment, restored_experiment, "experiment cardialign is deleted", "restore"),
    "deleted run": (deleted_run, restored_run, "is deleted in", "mlflow runs restore"),
    "artifacts away": (artifacts_away, artifacts_back, "cannot take this run", "--tracking-optional"),
    "newer schema": (newer_schema, schema_of_here, "cannot be opened", "mlflow db upgrade"),
}


@pytest.mark.parametrize("state", STATES)
def test_what_keeps_a_store_from_taking_a_run_is_said_before_training_and_optional_tracking_spools(
    tmp_path: Path, uri: str, state: str
) -> None:
    spoil, mend, problem, remedy = STATES[state]
    run_dir = tmp_path / "run"
    spoil(run_dir, uri)
    with pytest.raises(UserError) as caught:
        started(run_dir, uri)
    assert problem in caught.value.problem and remedy in caught.value.remedy
    tracker = started(run_dir, uri, optional=True)
    for step in (1, 2, 3):
        append_line(run_dir / METRICS, {"step": step, "loss": 1 / step})
    assert tracker.finish("FINISHED", {"run/restarts": 0.0}) is False
    mend(run_dir, uri)
    run_id = sync(run_dir)["run_id"]
    client = open_client(uri)
    losses = [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")]
    assert losses == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["encoder.lead_groups.left -x28-lateral-x29-"] == '["I"]'


def test_a_missing_package_of_the_artifact_store_is_named_before_training(tmp_path: Path, uri: str) -> None:
    open_client(uri).create_experiment("away", artifact_location="nosuchscheme://bucket/x")
    with pytest.raises(UserError, match="nosuchscheme"):
        started(tmp_path / "run", uri, experiment="away")
    (run,) = open_client(uri).search_runs([open_client(uri).get_experiment_by_name("away").experiment_id])
    assert run.info.status == "FAILED", "nothing trains under it"


def test_a_locked_database_is_named_at_once(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "WAIT_SECONDS", 0.05)
    other = sqlite3.connect(uri.removeprefix("sqlite:///"))
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(UserError, match="locked"):
            started(tmp_path / "run", uri)
        assert started(tmp_path / "run", uri, optional=True).finish("FINISHED") is False
    finally:
        other.close()


def test_a_run_that_its_store_has_lost_is_logged_anew_when_asked(tmp_path: Path, uri: str) -> None:
    run_dir = tmp_path / "run"
    first = started(run_dir, uri)
    for step in (1, 2):
        append_line(run_dir / METRICS, {"step": step, "loss": 1 / step})
    first.finish("FINISHED")
    values = json.loads((run_dir / TRACKING).read_text())
    (run_dir / TRACKING).write_text(json.dumps({**values, "run_id": "0" * 32}))  # as after an emptied database
    with pytest.raises(UserError, match=r"is not in sqlite(.|\n)*--new-run"):
        started(run_dir, uri)
    with pytest.raises(UserError, match="--new-run"):
        sync(run_dir)
    again = sync(run_dir, new_run=True)
    assert again["values_sent"] >= 2 and again["run_id"] not in ("0" * 32, first.run_id)
    assert len(open_client(uri).get_metric_history(again["run_id"], "train/loss")) == 2
    resumed = started(run_dir, uri)
    assert resumed.run_id == again["run_id"]
    assert resumed.finish("FINISHED")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_run_directory_that_takes_nothing_is_named_not_the_store_and_no_run_is_left_there(
    tmp_path: Path, uri: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as full:
        full.setattr("cardialign.cluster.tracking.state.write_json", refuse)
        with pytest.raises(RunDirectoryError, match=f"{tmp_path / 'run'} cannot be written") as caught:
            started(tmp_path / "run", uri)
    assert "then run the same command again" in caught.value.remedy, "another --run-dir would begin at step 0"
    client = open_client(uri)
    assert client.search_runs([client.get_experiment_by_name("cardialign").experiment_id]) == []
    tracker = started(tmp_path / "run", uri)
    with monkeypatch.context() as full:
        full.setattr("cardialign.cluster.tracking.state.write_json", refuse)
        tracker.finish("FINISHED")  # the outcome of the training counts for more
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_run_that_goes_on_is_not_sent_a_second_time(tmp_path: Path, uri: str) -> None:
    """Both would send the same steps under another time: MLflow keeps them as other rows."""
    with locked_run(tmp_path / "run"):
        tracker = started(tmp_path / "run", uri)
        append_line(tmp_path / "run" / METRICS, {"step": 1, "loss": 2.5})
        with pytest.raises(UserError, match="is in use by process") as caught:
            sync(tmp_path / "run")
        assert "sends its figures itself" in caught.value.remedy
        tracker.finish("FINISHED")
    sync(tmp_path / "run")
    assert len(open_client(uri).get_metric_history(tracker.run_id, "train/loss")) == 1


def test_the_configuration_is_an_artifact_of_the_first_start_too(tmp_path: Path, uri: str) -> None:
    tracker = started(tmp_path / "run", uri)
    (tmp_path / "run" / CONFIG).write_text("{}")  # the driver writes it once tracking is open
    tracker.finish("FINISHED")
    assert {item.path for item in open_client(uri).list_artifacts(tracker.run_id)} == {CONFIG, "parameters.json"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        "{",
        "[]",
        "5",
        '{"a": 1}',
        '{"tracking_uri": 1, "cursors": {}}',
        "\xff\xfe",
        '{"tracking_uri": "x", "experiment": "", "run_name": "", "final": [], "cursors": {}}',
    ],
)
def test_a_damaged_state_is_a_sentence_and_is_left_where_it_is(tmp_path: Path, uri: str, text: str) -> None:
    (tmp_path / TRACKING).write_bytes(text.encode("latin-1"))
    for act in (lambda: sync(tmp_path), lambda: started(tmp_path, uri)):
        with pytest.raises(UserError, match="cannot be read as the tracking state") as caught:
            act()
        assert "move it away" in caught.value.remedy
    assert (tmp_path / TRACKING).read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize("home", ["\ud800", "a\0b", "/nowhere"])
def test_a_state_whose_home_is_no_place_is_that_of_its_own_run(tmp_path: Path, home: str) -> None:
    state = TrackingState("sqlite:///x", "", "", run_id="r", home=home)
    assert state.copied_from(tmp_path) is None


def test_lines_that_hold_no_figures_are_passed_over(tmp_path: Path, uri: str) -> None:
    tracker = started(tmp_path / "run", uri)
    with (tmp_path / "run" / METRICS).open("wb") as file:
        file.write(b'{"step": "one", "loss": 1}\n{"step": null}\n' + b"[" * 100_000 + b"\n\xff\xfe\n")
        file.write(b'{"step": 1, "loss": 1.5, "loss (ecg->text)": 2.5, "time": "noon"}\n')
        file.write(b'{"step": 2, "loss": 1' + b"0" * 400 + b"}\n")
    assert tracker.finish("FINISHED")
    assert open_client(uri).get_run(tracker.run_id).data.metrics == {
        "train/loss": 1.5,
        "train/loss -x28-ecg--x3e-text-x29-": 2.5,
    }


def test_the_experiment_is_that_of_the_option_else_of_the_environment(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(uri)

    def experiment_of(name: str, **options: Any) -> str:
        tracker = started(tmp_path / name, uri, **options)
        tracker.finish("FINISHED")
        return str(client.get_experiment(client.get_run(tracker.run_id).info.experiment_id).name)

    assert experiment_of("a") == "cardialign"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("by-id"))
    assert experiment_of("b") == "by-id"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by 'name'")
    assert experiment_of("c") == "by 'name'"
    assert experiment_of("d", experiment="../by/option") == "../by/option"
    assert (tmp_path / "mlartifacts").is_dir() and not (tmp_path.parent / "by").exists()
    with pytest.raises(UserError, match="cannot be the name of an MLflow experiment"):
        experiment_of("e", experiment="")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(UserError, match="MLFLOW_EXPERIMENT_ID"):
        experiment_of("f")


def test_a_run_of_the_environment_is_used_once(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = open_client(uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", named)
    tracker = started(tmp_path / "run", uri)
    assert tracker.run_id == named
    tracker.finish("FINISHED")
    with pytest.raises(UserError, match="holds another training already"):
        started(tmp_path / "another", uri)
    resumed = started(tmp_path / "run", uri)
    assert resumed.run_id == named
    resumed.finish("FINISHED")


class _Server(BaseHTTPRequestHandler):
    """Knows one user. Everybody may ask whether it is there; other statuses than 200 stand in `status`."""

    status = 200

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = self.headers.get("Authorization", "") == "Basic " + base64.b64encode(b"anna:s3cret/1").decode()
        status = self.status if known or self.path == "/health" else 401
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{}" if status == 200 else b"no")

    do_POST = do_GET  # noqa: N815 - the name that http.server asks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_an_address_with_user_and_password_signs_in(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_client(f"http://anna:s3cret%2F1@{server}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret/1")
    open_client(f"http://{server}")


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "MLFLOW_TRACKING_TOKEN"), (403, "MLFLOW_TRACKING_TOKEN"), (404, "path"), (500, "sync")]
)
def test_a_server_that_refuses_is_one_sentence_with_the_way_out(
    server: str, status: int, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_Server, "status", status)
    with pytest.raises(UserError) as caught:
        started(tmp_path / "run", f"http://anna:s3cret%2F1@{server}")
    assert server in caught.value.problem and remedy in caught.value.remedy
    assert "s3cret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(
    "uri",
    [
        "http://anna:s3cret@127.0.0.1:1",
        "http://anna:s3/cret@mlflow.invalid",
        "http://anna:s3#cret@mlflow.invalid:5000",
        "http://anna:s3cret@host:99999",
        "http://anna:s3cret@.host",
        "http://anna:s3cret@",
        "http://[anna:s3cret@host",
        "postgresql://anna:s3cret@127.0.0.1:1/mlflow",
        "mysql+pymysql://anna:s3cret@127.0.0.1:x/mlflow",
        "nosuchscheme://anna:s3cret@host/x",
    ],
)
def test_a_password_is_never_shown_logged_or_stored(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, cardialign: Any
) -> None:
    answer = cardialign("registry", "list", "--tracking-uri", uri)
    assert answer.code == 1 and "defect of ours" not in answer.err
    tracker = started(tmp_path / "run", uri, optional=True)
    assert tracker.finish("FINISHED") is False
    with pytest.raises(UserError) as caught:
        sync(tmp_path / "run")
    stored = (tmp_path / "run" / TRACKING).read_text()
    for text in (answer.out, answer.err, caplog.text, str(caught.value), stored, tracker.address):
        assert "s3" not in text and "cret" not in text, text


def test_a_password_that_an_older_state_holds_goes_and_its_run_stays(tmp_path: Path) -> None:
    state = TrackingState("http://anna:s3cret@host", "cardialign", "trial", run_id="a" * 32)
    state.save(tmp_path)
    found = TrackingState.load(tmp_path)
    assert found is not None and (found.tracking_uri, found.run_id) == ("http://host", "a" * 32)


def test_no_encrypted_connection_is_told_as_that(server: str) -> None:
    with pytest.raises(UserError, match=r"no encrypted connection(.|\n)*MLFLOW_TRACKING_SERVER_CERT_PATH"):
        open_client(f"https://{server}")


def test_a_run_signs_in_again_with_the_password_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tracking.json keeps none: a later sync takes it from MLFLOW_TRACKING_URI, or from --tracking-uri."""
    from cardialign.cluster.tracking.replay import _signed

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:s3cret@host:5000")
    assert _signed("http://host:5000") == "http://anna:s3cret@host:5000"
    assert _signed("http://other:5000") == "http://other:5000"
