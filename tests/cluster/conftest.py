"""Shared by the tests of the top floor: the command line in process; one tiny cohort, shard set and encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.main import main
from cardialign.cluster.tracking import mlflow_store
from tests.support.tiny_set import export_untrained, make_tiny_cohort, make_tiny_shards


@dataclass(frozen=True)
class Answer:
    """What one command did: exit code, last stdout line as JSON (None without --json), stdout, stderr."""

    code: int
    json: Any
    out: str
    err: str


@pytest.fixture
def cardialign(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`cardialign("shards", "verify", path)` in this process; `--json` is added unless plain=True."""

    def call(*words: object, plain: bool = False) -> Answer:
        code = main([*map(str, words), *([] if plain else ["--json"])])
        out, err = capsys.readouterr()
        return Answer(code, None if plain else json.loads(out.strip().splitlines()[-1]), out, err)

    return call


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cohort(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    return make_tiny_shards(tmp_path_factory.mktemp("tiny"), cohort)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_untrained(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_store.open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
