"""Where the artifacts of a run or a version may lie, asked before anything is fetched from there or sent there.

A tracking server is one of other people's: where artifacts lie is its word. It does not choose what this machine reads,
writes or connects to: a place is of a kind that is listed here, on the server that was named or in a cloud's own store,
and on this machine only where the store itself is a file on it, or below a folder that the user names.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.cluster.cli.address import in_memory, registry_uri, sqlite_path
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shown import public, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDERS = "CARDIALIGN_ARTIFACTS"
"""Environment variable: folders of this machine, separated by colons, below which a server may say that artifacts lie
(a mount that it shares with its users)."""
_SERVER = ("mlflow-artifacts", "http", "https")
_BUCKETS = ("s3", "gs")
_AZURE = ("abfs", "abfss", "wasb", "wasbs")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ACCOUNT = re.compile(
    r"[A-Za-z0-9$._-]+@[a-z0-9]+\.(blob|dfs)\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)"
)
_PORTS = {"http": 80, "https": 443}


def send_folder(client: MlflowClient, run_id: str, folder: str | Path, place: str) -> None:
    """The files of a folder as artifacts of a run, below `place`. Raises DataError, see `check_run`."""
    check_run(client, run_id)
    client.log_artifacts(run_id, str(folder), place)


def check_run(client: MlflowClient, run_id: str) -> None:
    """Raise DataError where the artifacts of a run would go to a place that its store may not send us to."""
    check_place(str(client.get_run(run_id).info.artifact_uri), client.tracking_uri, f"MLflow run {run_id}")


def check_place(source: str, uri: str, wanted: str) -> None:
    """Raise DataError for a place that the registry at `uri` may not send us to."""
    why = _refused(source, {uri, registry_uri(uri)})
    if why:
        raise DataError(
            f"{wanted}: its artifacts are said to lie at {shown(public(source))[:300]}, {why}",
            "ask who runs the registry; of a folder that it shares with its users: "
            f"{FOLDERS}=FOLDER says that artifacts may lie there",
        )


def _refused(source: str, stores: set[str]) -> str:
    """Why not, as the end of a sentence; "" for a place that may be asked."""
    try:
        place = urllib.parse.urlsplit(source)
        port = place.port
    except ValueError:
        return "which is no address"
    if "\\" in source or any(not each.isprintable() for each in source) or place.query or place.fragment:
        return "which is no address of artifacts"
    scheme = place.scheme.lower()
    if scheme in ("", "file"):
        return _refused_here(urllib.parse.unquote(place.path) if scheme else source, place.netloc, stores)
    if scheme in _SERVER:
        if place.username is not None or place.password is not None:
            return "which holds a name or a password"
        if scheme == "mlflow-artifacts" and not place.netloc:
            return ""
        for store in map(urllib.parse.urlsplit, stores):
            usual = _PORTS.get(store.scheme.lower())
            same = place.hostname == store.hostname and (port or usual) == (store.port or usual)
            if same and scheme in ("mlflow-artifacts", store.scheme.lower()):
                return ""
        return "which is another server than the registry: it would be sent what this one asks to sign in with"
    if scheme in _BUCKETS:
        return "" if _BUCKET.fullmatch(place.netloc) else "which is no bucket"
    if scheme in _AZURE:
        return "" if _ACCOUNT.fullmatch(place.netloc) else "which is no account of Azure's stores"
    return f"and nothing is fetched from {scheme}://"


def _refused_here(path: str, host: str, stores: set[str]) -> str:
    if host not in ("", "localhost"):
        return "which is another machine's file"
    if all(sqlite_path(store) is not None or in_memory(store) for store in stores):
        return ""
    real = os.path.realpath(path)
    allowed = [os.path.realpath(each) for each in os.environ.get(FOLDERS, "").split(":") if each]
    if any(real == each or real.startswith(f"{each.rstrip('/')}/") for each in allowed):
        return ""
    return "a folder of this machine, which a server has no say over"
