"""A secret is planted in every place where people keep one, and looked for wherever something of ours is left."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs.failure import write_failure
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.tracking.tracker import RunTracker
from cardialign.data_shards.errors import UserError
from tests.support.wfdb_files import ecg_counts, write_record

SECRET = "pl4nted-s3cret-of-nobody"
STORE = f"http://bob:{SECRET}@127.0.0.1:9"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "CARDIALIGN_SALT", "CARDIALIGN_LLM_KEY", "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY",
)  # fmt: skip
SIGNED = f"https://127.0.0.1:9/set?X-Amz-Credential=x&X-Amz-Signature={SECRET}"
SHARDS = (SIGNED, f"ftp://me:{SECRET}@127.0.0.1:9/set", f"s3://AKIA:{SECRET}@bucket/set",
          f"https://x.blob.core.windows.net/c/set?sv=1&sig={SECRET}")  # fmt: skip


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cardialign.data_shards.shard_set.transfers.FIRST_PAUSE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    return tmp_path


def test_a_set_that_was_built_with_a_salt_holds_nothing_of_it(
    cardialign: Callable[..., Any], planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_record(planted / "records" / "one", ecg_counts())
    root, out = planted / "records", planted / "set"
    said = [cardialign("shards", "build", "wfdb", "--root", root, "--out", out, "--workers", 1)]
    said += [cardialign("shards", "verify", out), cardialign("shards", "stats", out, "--out", planted / "page.html")]
    said += [cardialign("shards", "build", "wfdb", "--root", root, "--out", out, "--salt", f"x{SECRET}")]
    assert [answer.code for answer in said] == [0, 0, 0, 1]
    assert not any(SECRET in answer.out + answer.err for answer in said) and SECRET not in caplog.text
    assert not [name for name, content in everything_below(planted).items() if SECRET.encode() in content]


@pytest.mark.parametrize("address", SHARDS)
def test_an_address_of_shards_is_refused_with_its_secret_untold(
    address: str, cardialign: Callable[..., Any], planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = planted / "run"
    recipe = planted / "recipes" / "r.yaml"
    recipe.parent.mkdir()
    recipe.write_text("training: {steps: 1}\n")
    for words in (
        ("shards", "verify", address),
        ("shards", "inspect", address),
        ("text-bank", "stats", address),
        ("pretrain", "--recipe", recipe, "--shards", address, "--run-dir", run),
        ("plan", "--recipe", recipe, "--set", f"data.shards={address}"),
    ):
        answer = cardialign(*words)
        assert answer.code != 0 and "defect of ours" not in answer.out
        assert SECRET not in answer.out + answer.err + caplog.text, words
    assert not [name for name, content in everything_below(planted).items() if SECRET.encode() in content]


@pytest.mark.parametrize(
    "words",
    [
        ("registry", "list", "--tracking-uri", STORE),
        ("registry", "pull", "x@candidate", "OUT", "--tracking-uri", STORE),
        ("embed", "RECORD", "--encoder", "models:/x@candidate", "--tracking-uri", STORE),
        ("embed", "RECORD", "--encoder", SIGNED),
        ("jobs", "list", "--address", f"http://me:{SECRET}@127.0.0.1:9"),
        (
            "text",
            "complete",
            "SET",
            "--out",
            "OUT",
            "--model",
            "m",
            "--endpoint",
            f"http://127.0.0.1:9/v1?key={SECRET}",
        ),
        ("shards", "build", "wfdb", "--root", "SET", "--out", "OUT", "--address", f"ray://me:{SECRET}@127.0.0.1:9"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_command_says_the_secret_of_an_address_that_it_was_given(
    words: tuple[str, ...], cardialign: Callable[..., Any], planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = {"OUT": planted / "out", "RECORD": planted / "records" / "one", "SET": planted / "records"}
    write_record(planted / "records" / "one", ecg_counts())
    answer = cardialign(*(places.get(word, word) for word in words))
    assert answer.code != 0 and "defect of ours" not in answer.out, answer.out
    assert SECRET not in answer.out + answer.err + caplog.text
    assert not [name for name, content in everything_below(planted).items() if SECRET.encode() in content]


def test_a_run_and_its_store_keep_no_secret_of_the_store_or_the_environment(planted: Path, uri: str) -> None:
    run = planted / "run"
    for address in (STORE, uri):
        tracker = RunTracker(run, address, optional=True)
        tracker.start("trial", {"optimizer": {"lr": 0.002}, "data": {"shards": "s3://bucket/set"}}, {"a": "b"})
        append_line(run / "metrics.jsonl", {"step": 1, "loss": 3.0})
        tracker.finish("FINISHED")
    write_failure(run, UserError("it failed", "do this"), 0)
    assert not [name for name, content in everything_below(planted).items() if SECRET.encode() in content]
    dump = "\n".join(sqlite3.connect(uri.removeprefix("sqlite:///")).iterdump())
    assert SECRET not in dump and "optimizer.lr" in dump


class _Store(BaseHTTPRequestHandler):
    """As much of an MLflow server as ends a run."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        info = {"run_id": "r", "run_name": "trial", "experiment_id": "1", "status": "FINISHED", "start_time": 1}
        answer = json.dumps({"run": {"info": info}, "run_info": info, "experiments": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 - the name is the library's

    def log_message(self, *_: object) -> None:
        pass


def test_a_run_that_ends_at_a_server_prints_no_link_with_the_password_in_it(
    planted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = open_client(f"http://bob:{SECRET}@127.0.0.1:{server.server_port}")
        client.set_terminated("r", "FINISHED")
        server.shutdown()
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
