"""Which versions a run was made with, and from where: distributions, our own folder, the git commit of a checkout."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

TRACKED = ("cardialign", "torch", "deepspeed", "ray", "mlflow", "transformers", "triton", "pcodec", "numpy")

COMMIT = "CARDIALIGN_COMMIT"
"""Environment variable that names the commit of a package without a checkout: of an image, or of a submitted job."""
CHANGED = "+changed"
"""Behind a commit whose code was changed since: what ran is in no commit."""
FLOORS = ("cardialign", "cluster", "pretrain", "data_shards", "kernels")
"""Folders of a checkout whose files run; what else is changed or lies beside them, like results, runs nowhere."""


def source_root() -> Path:
    """Folder that holds the package `cardialign`, whether a checkout or site-packages."""
    return Path(__file__).absolute().parents[3]


def version(distribution: str) -> str:
    """Version of an installed distribution, "" when it is absent.

    A source checkout of our own answers from its pyproject.toml.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    pyproject = source_root() / "pyproject.toml"
    if distribution == "cardialign" and pyproject.is_file():
        import tomllib

        return str(tomllib.loads(pyproject.read_text())["project"]["version"])
    return ""


def versions() -> dict[str, str]:
    return {name: version(name) for name in TRACKED if version(name)}


def git_commit() -> str:
    """Commit of the checkout that this package runs from, with CHANGED where a file of the package is not as it was
    committed; else what COMMIT says. "" when nothing tells it."""
    if not (source_root() / ".git").exists():
        return os.environ.get(COMMIT, "")
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return ""
    changes = _git("status", "--porcelain", "--untracked-files=all", "--", *FLOORS)
    return commit + (CHANGED if changes is None or changes else "")


def _git(*words: str) -> str | None:
    """What git says of the checkout that this package runs from; None when it does not answer.

    Variables that name another repository (git sets them in its hooks) do not count. Nothing is written.
    """
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    command = ["git", "--no-optional-locks", "-C", str(source_root()), *words]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(  # noqa: S603 - git, words of ours
            command, capture_output=True, text=True, timeout=5, check=False, env=environment
        )
        return answer.stdout.strip() if answer.returncode == 0 else None
    return None
