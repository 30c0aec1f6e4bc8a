"""Addresses of MLflow stores: which one is meant, what of it may be seen, and nothing of a password in any message.

What is shown, kept in a file, or compared is `public(uri)` (`cardialign.data_shards.shown`): without user, password,
and secrets among its parameters. Only MLflow itself gets the whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

TRACKING_URI = "sqlite:///mlflow.db"
"""The MLflow store of who names none, neither with an option nor with MLFLOW_TRACKING_URI."""
SQLITE = "sqlite:///"
_SQLITE = re.compile(r"(?i:sqlite)(?P<driver>\+\w+)?://(?:/(?P<name>[^?]*))?(?:\?(?P<parameters>.*))?", re.DOTALL)


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else `TRACKING_URI`."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or TRACKING_URI


def registry_uri(uri: str) -> str:
    """The registry beside the tracking store `uri`: MLFLOW_REGISTRY_URI, else the store itself.

    A store that was named with an option is the registry too, whatever the environment says: an option wins.
    """
    named = os.environ.get("MLFLOW_REGISTRY_URI", "").strip()
    return absolute_uri(named) if named and absolute_uri(uri) == absolute_uri(default_uri()) else uri


def absolute_uri(uri: str) -> str:
    """The same store, named so that another working directory finds it: relative SQLite paths become absolute."""
    uri = uri.strip()
    path = sqlite_path(uri)
    if path is None:
        return uri
    _, question, parameters = uri.partition("?")
    return SQLITE + str(path.expanduser().absolute()) + question + parameters


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for every other, and for one in memory."""
    found = _SQLITE.fullmatch(uri)
    return Path(found["name"]) if found and found["driver"] in (None, "+pysqlite") and not in_memory(uri) else None


def in_memory(uri: str) -> bool:
    """A SQLite store that no file holds: all that is written there is gone when the process ends."""
    found = _SQLITE.fullmatch(uri)
    if found is None:
        return False
    name = found["name"] or ":memory:"
    return name in (":memory:", "file::memory:") or "mode=memory" in (found["parameters"] or "").split("&")
