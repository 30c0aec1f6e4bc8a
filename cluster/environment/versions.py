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
    """Commit of the checkout that this package runs from, else what COMMIT says; "" when nothing tells it."""
    folder = source_root()
    if not (folder / ".git").exists():
        return os.environ.get(COMMIT, "")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else ""
    return ""
