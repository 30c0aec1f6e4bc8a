"""Opening an MLflow store: quick checks first, so that a wrong address is one clear message and not minutes of retries.

Importing MLflow takes about 3 s, so it happens inside functions.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
REMEDY = (
    "give another --tracking-uri, or train with --tracking-optional and replay later with "
    "`cardialign tracking sync RUN_DIR`"
)


def absolute_uri(uri: str) -> str:
    """The same store, named so that another working directory finds it: relative SQLite paths become absolute."""
    if uri.startswith(SQLITE) and uri != SQLITE:
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).expanduser().absolute())
    return uri


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) and uri != SQLITE else None


def _check_sqlite(uri: str, path: Path) -> None:
    """SQLAlchemy would retry a hopeless file for minutes; the standard library answers at once."""
    if not path.parent.is_dir():
        raise UserError(
            f"MLflow database {uri} cannot be opened: folder {path.parent} does not exist",
            f"make the folder, or {REMEDY}",
        )
    try:
        connection = sqlite3.connect(path, timeout=5)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"MLflow database {uri} cannot be opened: {error}", REMEDY) from None


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5) as answer:
            answer.read(64)
    except urllib.error.HTTPError:
        return  # somebody answers there: let MLflow say what it makes of it
    except (OSError, ValueError) as error:
        raise UserError(f"MLflow server {uri} does not answer: {error}", REMEDY) from None


def open_client(uri: str) -> MlflowClient:
    """A client of the tracking store and the registry behind `uri`.

    Raises UserError naming the URI when it cannot be opened.
    """
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise UserError(
            f"MLflow no longer keeps runs in a plain folder: {uri}", f"use a database, for example {SQLITE}mlflow.db"
        )
    path = sqlite_path(uri)
    if path is not None:
        _check_sqlite(uri, path)
    elif scheme in ("http", "https"):
        _check_server(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):  # schema creation is chatty
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow, SQLAlchemy and driver errors share no base
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"MLflow store {uri} cannot be opened: {first_line}", REMEDY) from error
    return client


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of experiment `name`, created when absent.

    Artifacts of a SQLite store live beside the database, wherever the command is run.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    path = sqlite_path(uri)
    location = (path.parent / "mlartifacts" / name).absolute().as_uri() if path is not None else None
    return str(client.create_experiment(name, artifact_location=location))
