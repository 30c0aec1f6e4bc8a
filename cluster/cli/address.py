"""Addresses of MLflow stores: which one is meant, what of it may be seen, and nothing of a password in any message.

What is shown, kept in a file, or compared is `public(uri)`: without user, password, and secrets among its parameters.
Only MLflow itself gets the whole.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

TRACKING_URI = "sqlite:///mlflow.db"
"""The MLflow store of who names none, neither with an option nor with MLFLOW_TRACKING_URI."""
SQLITE = "sqlite:///"
_SQLITE = re.compile(r"(?i:sqlite)(?P<driver>\+\w+)?://(?:/(?P<name>[^?]*))?(?:\?(?P<parameters>.*))?", re.DOTALL)
SECRET_NAME = re.compile(r"pass|pwd|token|secret|credential|auth|key|odbc_connect", re.IGNORECASE)
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HIDDEN = "***"


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


def public(uri: str) -> str:
    """The address without user, password and secret parameters: what may be shown and stored."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    rest, _, parameters = rest.partition("?")
    if scheme.partition("+")[0] not in ("sqlite", "file"):
        before, at, behind = parameters.rpartition("@")
        if at and "=" not in before:  # a password with an unescaped question mark
            return public(f"{scheme}://{behind}")
        rest = rest.rpartition("@")[2]  # an unescaped password may hold any character, / included
    kept = [part for part in parameters.split("&") if part and not SECRET_NAME.search(part.partition("=")[0])]
    return f"{scheme}://{rest}" + (f"?{'&'.join(kept)}" if kept else "")


def without_secrets(text: str, uri: str = "") -> str:
    """`text`, of whatever library, without the secrets of `uri` and of MLflow's environment variables."""
    text = text.replace(uri, public(uri)) if uri else text
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return re.sub(r"(?<=://)[^\s/'\"<>]*@", "", text)


def has_secrets(uri: str) -> bool:
    return bool(_secrets(uri))


def _secrets(uri: str) -> set[str]:
    """Passwords and tokens that may turn up in a message, as they were written and as they are sent."""
    found = {os.environ.get(name, "") for name in SECRETS}
    _, _, rest = uri.partition("://")
    if not uri.startswith(("sqlite:", "file:")) and "@" in rest:
        user, colon, password = rest.rpartition("@")[0].partition(":")
        found.add(password if colon else user)
    for part in rest.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if SECRET_NAME.search(name):
            found.add(value)
    found |= {urllib.parse.unquote(secret) for secret in found} | {
        piece for secret in found for piece in re.split(r"[/?#@]", secret) if len(piece) > 3
    }  # a parser that stumbles over an unescaped character quotes the piece before it
    return {secret for secret in found if len(secret) > 2}
