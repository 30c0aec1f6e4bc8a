"""The registry against a real SQLite store: register, list, promote, pull, verify, load; and every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.cluster.registry.registry import (
    Reference,
    check_name,
    list_models,
    log_evaluation,
    promote,
    pull,
    register,
)
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.data_shards.errors import UsageError, UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> tuple[str, Path]:
    """A registry that holds the untrained encoder as version 1 of `tiny`."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert register(exported, "tiny", uri, metrics={"final_loss": 2.5}) == 1
    return uri, folder


def test_pulled_encoder_is_the_registered_one_and_loads(
    store: tuple[str, Path], exported: Path, tmp_path: Path
) -> None:
    from cardialign.pretrain.export.loaded import load_encoder

    pulled = pull("tiny@candidate", tmp_path / "encoder", store[0])
    assert pulled["version"] == 1 and pulled["files"] == len(list(exported.iterdir()))
    signal = np.random.default_rng(0).normal(size=(2, 12, 250)).astype(np.float32)
    ours, theirs = load_encoder(exported), load_encoder(tmp_path / "encoder")
    np.testing.assert_array_equal(ours.embed(signal, sampling_rate=100), theirs.embed(signal, sampling_rate=100))
    assert not [
        path for path in (tmp_path / "encoder").rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".pickle")
    ], "no pickle"


def test_mlflow_alone_fetches_it_with_code_execution_forbidden(
    store: tuple[str, Path], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store[0])
    try:
        folder = Path(mlflow.artifacts.download_artifacts("models:/tiny@candidate"))
    finally:
        mlflow.set_tracking_uri(before)
    assert (folder / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_flipped_byte_in_the_artifact_store_is_refused_and_nothing_appears(
    store: tuple[str, Path], tmp_path: Path
) -> None:
    weights = next((store[1] / "mlartifacts").rglob("model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors"):
            pull("tiny@candidate", tmp_path / "encoder", store[0])
        assert not (tmp_path / "encoder").exists() and list(tmp_path.iterdir()) == []
    finally:
        weights.write_bytes(content)


def test_another_export_under_the_registered_name_is_refused(store: tuple[str, Path], tmp_path: Path) -> None:
    config = next((store[1] / "mlartifacts").rglob("provenance.json"))
    digests = config.with_name("digests.json")
    before = config.read_bytes(), digests.read_bytes()
    import hashlib
    import json

    config.write_bytes(b"{}")
    listed = json.loads(before[1])
    listed["files"]["provenance.json"] = hashlib.sha256(b"{}").hexdigest()
    digests.write_text(json.dumps(listed))
    try:
        with pytest.raises(UserError, match="not the encoder that was registered"):
            pull("tiny/1", tmp_path / "encoder", store[0])
    finally:
        config.write_bytes(before[0])
        digests.write_bytes(before[1])


def test_folder_that_does_not_match_its_digests_is_not_registered(
    store: tuple[str, Path], exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "export")
    (tmp_path / "export" / "extra.txt").write_text("not listed")
    with pytest.raises(UserError, match=r"extra\.txt"):
        register(tmp_path / "export", "tiny", store[0])
    assert len(list_models(store[0])) == 1


def test_unknown_name_alias_and_version_list_what_exists(store: tuple[str, Path], tmp_path: Path) -> None:
    for wanted, listed in (("nothing", "tiny"), ("tiny@staging", "candidate -> 1"), ("tiny/9", "versions 1")):
        with pytest.raises(UserError) as raised:
            pull(wanted, tmp_path / "out", store[0])
        assert wanted in raised.value.problem and listed in raised.value.remedy
    with pytest.raises(UserError, match="versions 1"):
        promote("tiny", 9, "production", store[0])


def test_aliases_move_and_figures_follow_the_version(
    store: tuple[str, Path], exported: Path, cardialign: Callable[..., Any]
) -> None:
    assert register(exported, "second", store[0], alias=None) == 1
    assert register(exported, "second", store[0]) == 2
    assert promote("second", 1, "production", store[0])["before"] is None
    moved = cardialign("registry", "promote", "second", 2, "--alias", "production", "--tracking-uri", store[0])
    assert moved.code == 0 and moved.json["before"] == 1
    result = {
        "macro": 0.9,
        "low": 0.88,
        "high": 0.92,
        "classes": [{"code": "PRC(S)", "auroc": 0.95}, {"code": "RARE", "auroc": None}],
    }
    log_evaluation("models:/second@production", store[0], "zero-shot/trial", result)
    rows = {
        row["version"]: row
        for row in cardialign("registry", "list", "--tracking-uri", store[0]).json["encoders"]
        if row["name"] == "second"
    }
    assert rows[2]["aliases"] == ["candidate", "production"] and rows[1]["aliases"] == []
    assert rows[2]["metrics"] == {"zero-shot/trial/macro": 0.9}
    metrics = open_client(store[0]).get_run(rows[2]["run_id"]).data.metrics
    assert metrics["zero-shot/trial/auroc/PRC_S_"] == 0.95, "a code that MLflow would refuse"


def test_references() -> None:
    assert Reference.parse("models:/a@b") == Reference("a", alias="b")
    assert Reference.parse("a/3") == Reference("a", version="3")
    assert Reference.parse("a") == Reference("a")
    for text in ("", "a@", "a/latest", "models:/a@b/3"):
        with pytest.raises(UsageError):
            Reference.parse(text)


def test_pull_by_command_says_what_it_made(
    store: tuple[str, Path], tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    answer = cardialign("registry", "pull", "tiny@candidate", tmp_path / "encoder", "--tracking-uri", store[0])
    assert answer.code == 0 and answer.json["path"] == str(tmp_path / "encoder") and answer.json["digest"]


def test_an_existing_encoder_is_replaced_when_asked_and_nothing_else_ever(
    store: tuple[str, Path], tmp_path: Path
) -> None:
    pull("tiny@candidate", tmp_path / "encoder", store[0])
    with pytest.raises(UserError, match="exists already"):
        pull("tiny@candidate", tmp_path / "encoder", store[0])
    pull("tiny@candidate", tmp_path / "encoder", store[0], overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="no encoder"):
        pull("tiny@candidate", tmp_path / "thesis", store[0], overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["bad/name", "a:b", "a@b", "", " a"])
def test_a_name_that_cannot_be_registered_is_refused_before_anything_is_done(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a registered encoder"):
        check_name(name)
