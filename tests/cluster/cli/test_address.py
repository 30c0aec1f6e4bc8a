"""Addresses of MLflow stores: that of an option, else of the environment; and no password in anything that is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.cluster.cli.address import TRACKING_URI, absolute_uri, registry_uri
from cardialign.cluster.main import build_parser
from cardialign.data_shards.shown import public, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://bob:s3cret@host:5000/mlflow", "http://host:5000/mlflow"),
        ("https://s3cret@host", "https://host"),
        ("http://bob:s3/cr@et?#@host:1", "http://host:1"),
        ("http://bob:a?s3cret@host", "http://host"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("postgresql+psycopg2://bob:s3cret@host/db?sslmode=require", "postgresql+psycopg2://host/db?sslmode=require"),
        (
            "postgresql://host/db?user=bob&password=s3cret&sslmode=require",
            "postgresql://host/db?user=bob&sslmode=require",
        ),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3D1%3BPWD%3Ds3cret", "mssql+pyodbc:///"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("sqlite:///mlflow.db?timeout=30", "sqlite:///mlflow.db?timeout=30"),
        ("databricks", "databricks"),
        ("databricks://team", "databricks://team"),
    ],
)
def test_what_is_shown_of_an_address_has_no_user_and_no_password(uri: str, shown: str) -> None:
    assert public(uri) == shown


def test_messages_of_libraries_lose_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://bob:p%40ss+word@host"
    assert "p%40ss" not in without_secrets(f"API request to {uri}/api failed", uri)
    assert without_secrets("could not sign in with p@ss+word", uri) == "could not sign in with ***"
    assert "other" not in without_secrets("tried postgresql://carl:other@db/x", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-en-123")
    assert without_secrets("Bearer tok-en-123 refused") == "Bearer *** refused"


def test_the_store_is_that_of_the_option_else_of_the_environment_else_of_this_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["registry", "list"]
    assert build_parser("registry list").parse_args(words).tracking_uri == TRACKING_URI
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:s3cret@host")
    parser = build_parser("registry list")
    assert parser.parse_args(words).tracking_uri == "http://bob:s3cret@host"
    assert parser.parse_args([*words, "--tracking-uri", "http://other"]).tracking_uri == "http://other"
    assert "s3cret" not in parser.format_help()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert build_parser("registry list").parse_args(words).tracking_uri == TRACKING_URI


def test_help_names_the_variable_and_never_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cardialign.cluster.main import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:s3cret@host")
    assert main(["pretrain", "--help"]) == 0
    told = capsys.readouterr().out
    assert "MLFLOW_TRACKING_URI" in told and "MLFLOW_EXPERIMENT_NAME" in told and "s3cret" not in told


def test_the_registry_is_that_of_the_environment_beside_the_store_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    assert registry_uri("http://tracking") == "http://tracking"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry")
    assert registry_uri("http://tracking") == "http://registry"
    assert registry_uri("http://named-by-option") == "http://named-by-option", "an option wins"


def test_relative_databases_are_the_same_from_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///a/m.db?timeout=3") == f"sqlite:///{tmp_path}/a/m.db?timeout=3"
    assert absolute_uri("sqlite:///:memory:") == "sqlite:///:memory:" and absolute_uri("http://h") == "http://h"
    for written in ("SQLite:///a/m.db", "sqlite+pysqlite:///a/m.db", " sqlite:///a/m.db\n"):
        assert absolute_uri(written) == f"sqlite:///{tmp_path}/a/m.db", written
