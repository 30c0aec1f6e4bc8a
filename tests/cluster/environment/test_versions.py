"""Which code runs: the commit of the checkout, and whether what runs is what was committed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.environment import versions
from cardialign.cluster.registry.origin import Origin


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one file of the package and a page, which the package seems to run from."""
    for name in ("cluster/code.py", "README.md", ".gitignore"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("made/\n__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    monkeypatch.setattr(versions, "source_root", lambda: tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_code_that_was_changed_is_told_from_code_as_committed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/somewhere/else")  # as in a hook of another repository
    (checkout / "README.md").write_text("a page runs nowhere")
    (checkout / "results.json").write_text("{}")
    (checkout / "cluster" / "__pycache__").mkdir()
    (checkout / "cluster" / "__pycache__" / "code.pyc").touch()
    assert versions.git_commit() == commit
    new = checkout / "cluster" / "new.py"
    new.touch()
    assert versions.git_commit() == f"{commit}+changed", "a file that nobody committed may be imported"
    new.unlink()
    (checkout / "cluster" / "code.py").write_text("changed\n")
    assert versions.git_commit() == f"{commit}+changed"


def test_a_package_without_a_checkout_is_of_the_commit_that_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "source_root", lambda: tmp_path)
    monkeypatch.setenv(versions.COMMIT, "0123abc+changed")
    assert versions.git_commit() == "0123abc+changed"


def test_provenance_of_changed_code_is_incomplete() -> None:
    known: dict[str, Any] = {"recipe": "a", "shards_fingerprint": "b", "order_digest": "c", "versions": {"torch": "2"}}
    assert Origin(**known, commit="0123abc").missing("run") == []
    ((what, remedy),) = Origin(**known, commit="0123abc+changed").missing("run")
    assert "changed since commit 0123abc" in what and what.endswith("is not known"), "a signature asks for it, too"
    assert "commit the changes" in remedy
