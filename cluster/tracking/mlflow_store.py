"""Opening an MLflow store: quick checks first, so that a wrong address is one clear message and not minutes of retries.

Importing MLflow takes about 3 s, so it happens inside functions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sqlite3
import urllib.parse
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.cluster.cli.address import SQLITE, in_memory, registry_uri, sqlite_path
from cardialign.cluster.tracking.names import check_experiment, safe
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.offline import refuse_elsewhere
from cardialign.data_shards.plugins import did_you_mean
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import public, secrets_of, shown, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment that we make: MLflow's page then shows what belongs to training, and not what belongs to chats."""
EXPERIMENT = "cardialign"
"""The experiment of who names none, neither with an option nor with MLFLOW_EXPERIMENT_NAME."""
REMEDY = (
    "see that it runs, or give another --tracking-uri; a training needs none: --tracking-optional, and later "
    "`cardialign tracking sync RUN_DIR`"
)
"""Whoever meets it may train, or look at the registry."""
SIGN_IN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or write them into the "
    "address: https://USER:PASSWORD@HOST"
)
WAIT_SECONDS = 5.0
OTHER_SCHEMES = ("databricks", "databricks-uc", "uc")
PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
"""Where a database server listens when its address names no port."""


def _check_sqlite(uri: str, path: Path) -> None:
    """SQLAlchemy would retry a hopeless file for minutes; the standard library answers at once."""
    if not path.parent.is_dir():
        raise UserError(
            f"MLflow database {public(uri)} cannot be opened: folder {path.parent} does not exist",
            f"make the folder, or {REMEDY}",
        )
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"MLflow database {public(uri)} cannot be opened: folder {path.parent} is read-only",
            f"let this user write there, or {REMEDY}",
        )
    try:
        connection = sqlite3.connect(path, timeout=WAIT_SECONDS)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"MLflow database {public(uri)} cannot be opened: {error}", REMEDY) from None


def _check_address(uri: str) -> urllib.parse.SplitResult:
    """The parts of an address with a host. Raises UserError for one that no library reads as it is meant."""
    try:
        parts = urllib.parse.urlsplit(uri)
        readable = parts.port is None or parts.port > 0
    except ValueError:
        readable = False
    if not readable or not parts.hostname or parts.hostname != parts.hostname.strip(".") or ".." in parts.hostname:
        raise UserError(
            f"{public(uri)!r} cannot be read as the address of an MLflow store",
            "write SCHEME://USER:PASSWORD@HOST:PORT with a number as the port; in user and password write %2F for /, "
            "%3F for ?, %23 for #, %40 for @ and %25 for %",
        )
    return parts


def _check_server(uri: str) -> None:
    """Somebody answers there. Whoever it is: what MLflow makes of it, MLflow says."""
    import requests

    _check_address(uri)
    if not Secret(os.environ.get("MLFLOW_TRACKING_TOKEN", "")).fits_a_header():
        raise UserError(
            "MLFLOW_TRACKING_TOKEN holds a line break, or another letter that no token has", "set it to the token alone"
        )
    verify: bool | str = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or (
        os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("1", "true")
    )
    try:
        with requests.get(uri.rstrip("/") + "/health", timeout=_patience(), verify=verify, stream=True):
            pass
    except requests.exceptions.SSLError as error:
        raise UserError(
            f"MLflow server {public(uri)}: no encrypted connection can be made: {reason(error, uri)}",
            "for a certificate of your own authority set MLFLOW_TRACKING_SERVER_CERT_PATH to that authority's; "
            "MLFLOW_TRACKING_INSECURE_TLS=true trusts whoever answers; a server without TLS has an http:// address",
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"MLflow server {public(uri)} does not answer: {_of_the_system(error, uri)}", REMEDY) from None


def _of_the_system(error: BaseException, uri: str) -> str:
    """What the system said below the libraries ("Connection refused"), else the first line of the error."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return reason(error, uri)


def _patience() -> float:
    """Seconds to wait for a server: MLFLOW_HTTP_REQUEST_TIMEOUT where it is set."""
    try:
        return max(0.1, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
    except (KeyError, ValueError):
        return WAIT_SECONDS


def _check_database(uri: str) -> None:
    """A database server that is not there would be asked again for minutes; and its driver, which is not written in
    Python, does not ask whether it may connect."""
    parts = _check_address(uri)
    for host in _hosts_beside(parts.query):
        refuse_elsewhere(host)
    port = parts.port or PORTS[parts.scheme.lower().partition("+")[0]]
    try:
        socket.create_connection((parts.hostname or "", port), WAIT_SECONDS).close()
    except OSError as error:
        raise UserError(f"MLflow database {public(uri)} does not answer: {error}", REMEDY) from None


def _hosts_beside(query: str) -> list[str]:
    """The hosts that a driver takes from elsewhere than the place of the host: parameters, and libpq's environment."""
    given = [value for key, value in urllib.parse.parse_qsl(query) if key.lower() in ("host", "hostaddr", "service")]
    given += [os.environ.get(name, "") for name in ("PGHOSTADDR", "PGSERVICE")]
    hosts = [host.strip() for value in given for host in value.split(",")]
    named = [host if host.count(":") > 1 else host.partition(":")[0] for host in hosts]
    return [host for host in named if host and not host.startswith(("/", "@"))]  # those are sockets of the file system


def _check_there(uri: str) -> None:
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise UserError(
            f"there is no MLflow store {public(uri)}",
            "name the one that has the encoder: --tracking-uri, or MLFLOW_TRACKING_URI; the default is mlflow.db of "
            "the folder in which the command is given",
        )


def _check(uri: str) -> None:
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    path = sqlite_path(uri)
    if not uri:
        raise UserError(
            "the address of the MLflow store is empty",
            "is the variable set that it was made of? Give a database or server, for example --tracking-uri "
            f"{SQLITE}mlflow.db, or leave the option out",
        )
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise UserError(f"{uri!r} does not say how the MLflow store is reached", f"write http://{uri} or https://{uri}")
    if in_memory(uri):
        raise UserError(
            f"the MLflow store {public(uri)} lies in memory: runs and encoders would be gone when the command ends",
            f"name a file for it, for example {SQLITE}mlflow.db",
        )
    if path is not None:
        _check_sqlite(uri, path)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme.partition("+")[0] in PORTS:
        _check_database(uri)
    elif scheme in ("", "file") and uri != "databricks":
        raise UserError(
            f"MLflow no longer keeps runs in a plain folder: {uri}", f"use a database, for example {SQLITE}mlflow.db"
        )
    elif scheme not in OTHER_SCHEMES and not entry_points(group="mlflow.tracking_store", name=scheme):
        raise UserError(
            f"the address of the MLflow store {public(uri)} begins with {scheme!r}"
            f"{did_you_mean(scheme, ['http', 'https', 'sqlite', *PORTS])}",
            f"write http://HOST:PORT, https://HOST, {SQLITE}mlflow.db, or another database, for example "
            "postgresql://USER@HOST/DATABASE",
        )


def open_client(uri: str, *, make: bool = True) -> MlflowClient:
    """A client of the tracking store `uri` and of the registry that belongs to it (`address.registry_uri`).

    make: a database file that is not there is made; who only looks makes none.
    Raises UserError naming the URI when it cannot be opened.
    """
    registry = registry_uri(uri)
    for address in dict.fromkeys((uri, registry)):
        if not make:
            _check_there(address)
        _check(address)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password of the address in it
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):  # schema creation is chatty
        logging.getLogger(name).setLevel(logging.WARNING)
    with speaking(uri, "cannot be opened"):
        client = MlflowClient(tracking_uri=uri, registry_uri=registry)
        client.search_experiments(max_results=1)
        if registry != uri:
            client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def speaking(uri: str, what: str = "does not do what it was asked") -> Iterator[None]:
    """In this block, whatever MLflow, a driver or an artifact store raises becomes one UserError without secrets."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy and driver errors share no base
        told = UserError(f"MLflow store {public(uri)} {what}: {reason(error, uri)}", _remedy(str(error)))
        if secrets_of(uri):  # a traceback would show what is hidden here
            raise told from None
        raise told from error


def reason(error: BaseException, uri: str) -> str:
    """The first line of an error, fit to be shown."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return shown(without_secrets(first, uri))[:400]


def _remedy(message: str) -> str:
    if any(word in message for word in ("error code 401", "error code 403", "UNAUTHENTICATED", "PERMISSION_DENIED")):
        return SIGN_IN
    if "error code 404" in message or "ENDPOINT_NOT_FOUND" in message:
        return f"give the address under which the MLflow page itself is seen, its path included; or {REMEDY}"
    if "out-of-date database schema" in message or "Can't locate revision" in message:
        return (
            "another release of MLflow wrote this database: `mlflow db upgrade URI` (after a copy) when it is older, "
            f"that release of MLflow when it is newer; or {REMEDY}"
        )
    if "No Experiment with id" in message or "Invalid experiment ID" in message:
        return "set MLFLOW_EXPERIMENT_ID to one that is there, or unset it; --experiment NAME makes a new one"
    if "No module named" in message:
        return f"install that package for this Python; or {REMEDY}"
    return REMEDY


def default_experiment() -> str:
    """MLFLOW_EXPERIMENT_NAME, else `EXPERIMENT`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT


def experiment_id(client: MlflowClient, uri: str, name: str = "") -> str:
    """Id of experiment `name`, created when absent; without a name that of MLFLOW_EXPERIMENT_ID or the default.

    Artifacts of a SQLite store live beside the database, wherever the command is run.
    Raises UserError for a name that MLflow does not take, and for an experiment that is deleted.
    """
    given = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    if not name and given and not os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip():
        with speaking(uri, f"has no experiment {given} (MLFLOW_EXPERIMENT_ID)"):
            return _active(client.get_experiment(given), uri)
    name = name or default_experiment()
    check_experiment(name)
    with speaking(uri, f"does not open experiment {name}"):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return _active(found, uri)
        path = sqlite_path(uri)
        location = (path.parent / "mlartifacts" / safe(name)).absolute().as_uri() if path is not None else None
        return str(client.create_experiment(name, artifact_location=location, tags=KIND))


def _active(experiment: Experiment, uri: str) -> str:
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"MLflow experiment {experiment.name} is deleted in {public(uri)}",
            f"bring it back with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or give another --experiment",
        )
    return str(experiment.experiment_id)
