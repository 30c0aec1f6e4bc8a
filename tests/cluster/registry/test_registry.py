"""The registry against a real SQLite store: register, list, promote, pull, verify, load; and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.cluster.registry.evidence import log_evaluation
from cardialign.cluster.registry.lookup import Reference
from cardialign.cluster.registry.promotion import promote
from cardialign.cluster.registry.registry import list_models, pull, register
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.cluster.tracking.names import check_alias, check_model
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.run.integrity import verify_export, write_digests


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, exported: Path, empty_store: Path) -> tuple[str, Path]:
    """A registry that holds the untrained encoder as version 1 of `tiny`."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert register(exported, "tiny", uri, metrics={"final_loss": 2.5}) == 1
    return uri, folder


def another(export: Path, folder: Path, steps: int = 999) -> Path:
    """The same encoder after more steps, as far as its provenance says: other bytes, another digest."""
    shutil.copytree(export, folder)
    note = json.loads((folder / "provenance.json").read_text())
    note["training"]["steps"] = steps
    (folder / "provenance.json").write_text(json.dumps(note))
    (folder / "digests.json").unlink()
    write_digests(folder)
    return folder


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


def test_an_export_from_before_there_were_model_cards_is_registered_and_pulled(
    uri: str, exported: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(exported, tmp_path / "old"))
    for name in ("README.md", "golden.safetensors", "digests.json"):
        (old / name).unlink()
    write_digests(old)
    assert register(old, "old", uri) == 1
    pulled = pull("old/1", tmp_path / "encoder", uri)
    assert pulled["files"] == len(list(old.iterdir())) and verify_export(tmp_path / "encoder") == verify_export(old)


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
        promote("tiny/9", "production", store[0])


@pytest.mark.parametrize("words", ["list", "show a", "promote a/1", "rollback a", "pull a out"])
def test_who_only_looks_makes_no_store(tmp_path: Path, cardialign: Callable[..., Any], words: str) -> None:
    store = tmp_path / "mistyped.db"
    told = cardialign("registry", *words.split(), "--tracking-uri", f"sqlite:///{store}")
    assert told.code == 1 and "there is no MLflow store" in told.json["problem"]
    assert store.name in told.json["problem"]
    assert "MLFLOW_TRACKING_URI" in told.json["remedy"] and not store.exists()


def test_aliases_move_and_figures_follow_the_version(
    store: tuple[str, Path], exported: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    assert register(exported, "second", store[0], alias=None) == 1
    assert register(another(exported, tmp_path / "longer"), "second", store[0]) == 2
    assert promote("second/1", "staging", store[0])["before"] is None
    moved = cardialign("registry", "promote", "second", 2, "--alias", "staging", "--tracking-uri", store[0])
    assert moved.code == 0 and moved.json["before"] == 1
    result = {
        "macro": 0.9,
        "low": 0.88,
        "high": 0.92,
        "classes": [{"code": "PRC(S)", "auroc": 0.95}, {"code": "RARE", "auroc": None}],
        "ledger": [{"line": "ledger encoder x trial, pretraining: shared patients 5 of 7, shared recordings 0 of 40"}],
        "trained_on": {"status": "found", "records": 12, "note": "12 of 40 records are of patients it was trained on"},
    }
    log_evaluation("models:/second@staging", store[0], "zero-shot/trial", result)
    clean = {**result, "ledger": [], "trained_on": {**result["trained_on"], "status": "none", "records": 0}}
    log_evaluation("models:/second/1", store[0], "zero-shot/clean", clean)
    log_evaluation("models:/second/1", store[0], "zero-shot/odd", {**clean, "trained_on": None})
    plain = cardialign("registry", "list", "--tracking-uri", store[0], plain=True).out
    assert "zero-shot/trial/macro 0.9 (SCORED ON RECORDS THAT IT WAS TRAINED ON)" in plain
    assert "zero-shot/clean/macro 0.9  " in plain, "beside a figure of new patients nothing is said"
    assert "zero-shot/odd/macro 0.9 (whether it was trained on these records is not known)" in plain
    rows = {
        row["version"]: row
        for row in cardialign("registry", "list", "--tracking-uri", store[0]).json["encoders"]
        if row["name"] == "second"
    }
    assert rows[2]["aliases"] == ["candidate", "staging"] and rows[1]["aliases"] == []
    assert rows[2]["metrics"] == {"zero-shot/trial/macro": 0.9}
    assert rows[2]["seen"] == {"zero-shot/trial/macro": "found"}
    line = result["ledger"][0]["line"]
    assert rows[2]["ledger"] == {"zero-shot/trial": line} and rows[1]["ledger"] == {}
    client = open_client(store[0])
    run = client.get_run(rows[2]["run_id"]).data
    for tags in (run.tags, client.get_model_version("second", "2").tags):
        assert {key: told for key, told in tags.items() if "line" in told or "shared" in told} == {
            "trained_on.zero-shot/trial": line
        }
    assert run.metrics["evaluation/zero-shot/trial/trained_on_records"] == 12
    assert run.metrics["evaluation/zero-shot/trial/macro"] == 0.9
    table = classes_of(client, rows[2]["run_id"], "zero-shot/trial")
    assert [(row["code"], row["auroc"]) for row in table] == [("PRC(S)", 0.95), ("RARE", None)]


def test_versions_are_found_by_what_they_are(store: tuple[str, Path], exported: Path) -> None:
    client = open_client(store[0])
    (version,) = client.search_model_versions(
        "name = 'tiny' and tags.method = 'cardialign' and tags.encoder = 'cardialign' and tags.sampling_rate = '100'"
    )
    config, provenance = (json.loads((exported / name).read_text()) for name in ("config.json", "provenance.json"))
    fingerprint = provenance["training"].get("shards_fingerprint")
    said = {"recipe": config["name"], "leads": "12", **({"data": fingerprint} if fingerprint else {})}
    assert said.items() <= version.tags.items()
    assert version.description.startswith("<!-- card -->") and "signal contract" in version.description
    assert client.search_model_versions("name = 'tiny' and tags.method = 'siglip'") == []


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


@pytest.mark.parametrize(
    "name", ["bad/name", "a:b", "a@b", "", "   ", " a", "a ", "..", ".", "a\nb", "a\x1b[2Jb", "x" * 300, "\udcff"]
)
def test_a_name_that_cannot_be_registered_is_refused_before_anything_is_done(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a registered encoder"):
        check_model(name)
    with pytest.raises(UsageError):  # neither a store nor an export is looked at
        register(Path("/no/such/export"), name, "sqlite:////no/such/mlflow.db")


@pytest.mark.parametrize(
    "name", ["o'brien", 'the "best"', "both' and \"", "my encoder", "Ärzte", "a%20b", "x" * 250, "a\\"]
)
def test_a_name_that_mlflow_takes_can_be_listed_promoted_and_pulled(
    store: tuple[str, Path], exported: Path, tmp_path: Path, name: str
) -> None:
    assert register(exported, name, store[0]) == 1
    assert [row["version"] for row in list_models(store[0]) if row["name"] == name] == [1]
    assert promote(f"{name}/1", "staging", store[0])["before"] is None
    for reference in (name, f"{name}@staging", f"{name}/1", f"models:/{name}@candidate"):
        pulled = pull(reference, tmp_path / str(len(list(tmp_path.iterdir()))), store[0])
        assert (pulled["name"], pulled["digest"]) == (name, verify_export(exported))
    with pytest.raises(UserError, match=r"has no encoder (.|\n)*versions 1 and aliases candidate -> 1, staging -> 1"):
        pull(f"{name}/7", tmp_path / "none", store[0])


@pytest.mark.parametrize("alias", ["latest", "Latest", "v2", "V10", "", "a b", "prod/eu", "a@b", "x" * 300, "a\n"])
def test_an_alias_that_mlflow_does_not_take_is_refused_in_a_sentence(store: tuple[str, Path], alias: str) -> None:
    with pytest.raises(UsageError, match="alias"):
        promote("tiny/1", alias, store[0])


@pytest.mark.parametrize("alias", ["staging", "3", "eu-2", "vorläufig", "v", "v2x"])
def test_an_alias_that_mlflow_takes_can_be_pulled(store: tuple[str, Path], tmp_path: Path, alias: str) -> None:
    check_alias(alias)
    promote("tiny/1", alias, store[0])
    assert pull(f"tiny@{alias}", tmp_path / "encoder", store[0])["version"] == 1


def test_every_version_of_one_run_stays_what_it_was(exported: Path, tmp_path: Path, uri: str) -> None:
    client = open_client(uri)
    run = client.create_run("0").info.run_id
    exports = [exported, another(exported, tmp_path / "b", 10), another(exported, tmp_path / "c", 20)]
    assert [register(folder, "enc", uri, run) for folder in exports] == [1, 2, 3]
    for version, folder in enumerate(exports, 1):
        pulled = pull(f"enc/{version}", tmp_path / f"pulled-{version}", uri)
        assert pulled["digest"] == verify_export(folder)
        assert all(
            (tmp_path / f"pulled-{version}" / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir()
        )


def test_a_version_of_before_content_had_folders_stays_pullable(exported: Path, tmp_path: Path, uri: str) -> None:
    client = open_client(uri)
    run = client.create_run("0").info.run_id
    client.log_artifacts(run, str(exported), "encoder")
    client.create_registered_model("enc")
    client.create_model_version("enc", source=f"{client.get_run(run).info.artifact_uri}/encoder", run_id=run)
    assert register(another(exported, tmp_path / "longer"), "enc", uri, run) == 2
    assert register(exported, "enc", uri, run) == 3, "version 1 lies where nothing protects it"
    digest = verify_export(exported)
    with pytest.raises(UserError, match="no tag `digest`") as raised:
        pull("enc/1", tmp_path / "v1", uri)
    assert f"--expect-digest {digest}" in raised.value.remedy and not (tmp_path / "v1").exists()
    assert pull("enc/1", tmp_path / "v1", uri, expected=digest)["digest"] == digest
    assert pull("enc/3", tmp_path / "v3", uri)["digest"] == digest


def test_the_same_encoder_is_one_version_and_registering_it_again_mends_its_files(
    exported: Path, tmp_path: Path, uri: str
) -> None:
    assert register(exported, "enc", uri, metrics={"loss": 2.0}) == 1
    weights = next((tmp_path / "mlartifacts").rglob("model.safetensors"))
    weights.write_bytes(b"lost")
    with pytest.raises(UserError, match="content changed"):
        pull("enc", tmp_path / "broken", uri)
    assert register(exported, "enc", uri, metrics={"loss": 1.0}, alias="staging") == 1
    assert pull("enc@staging", tmp_path / "mended", uri)["digest"] == verify_export(exported)
    assert [row["metrics"] for row in list_models(uri)] == [{"loss": 1.0}]


def test_overwrite_replaces_an_encoder_and_nothing_that_lies_beside_it(store: tuple[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "project"
    pull("tiny", out, store[0])
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("years of work")
    (out / "thesis.tex").write_text("years of work")
    before = sorted(path.name for path in out.rglob("*"))
    with pytest.raises(UserError, match=r"more than an encoder \(notes/a\.txt, thesis\.tex\)"):
        pull("tiny", out, store[0], overwrite=True)
    assert sorted(path.name for path in out.rglob("*")) == before
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="is a link"):
        pull("tiny", tmp_path / "link", store[0], overwrite=True)


def test_an_encoder_that_is_replaced_may_hold_what_desktops_drop(store: tuple[str, Path], tmp_path: Path) -> None:
    pull("tiny", tmp_path / "encoder", store[0])
    (tmp_path / "encoder" / ".DS_Store").write_bytes(b"\0")
    assert verify_export(tmp_path / "encoder")
    pull("tiny", tmp_path / "encoder", store[0], overwrite=True)
    assert not (tmp_path / "encoder" / ".DS_Store").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


LABEL_CODES = [
    "../../x",
    "/abs",
    "a//b",
    ".",
    "..",
    "a\tb",
    "NORM\n",
    "x" * 300,
    "x" * 299 + "y",
    "",
    "PRC(S)",
    "PRC[S]",
]
LABEL_CODES += ["PRC_S_", "-x28-", "-x2", "(", "AF/AFL", "AF-AFL", "心房", "NORM", "1AVB", "a b"]


def classes_of(client: Any, run_id: str, evaluation: str) -> list[dict[str, Any]]:
    """The rows of the table of classes, as `mlflow.load_table` would read the artifact."""
    path = f"evaluation/{evaluation}/classes.json"
    assert {"path": path, "type": "table"} in json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    table = json.loads(Path(client.download_artifacts(run_id, path)).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_every_label_code_is_a_row_of_one_table_and_no_chart_of_one_point(
    store: tuple[str, Path], exported: Path
) -> None:
    register(exported, "codes", store[0])
    classes = [{"code": code, "auroc": k / 100} for k, code in enumerate(LABEL_CODES)]
    result = {"macro": 0.9, "low": 0.88, "high": 0.92, "classes": classes}
    log_evaluation("codes", store[0], "zero-shot/../it's (mine)", result)
    (row,) = [row for row in list_models(store[0]) if row["name"] == "codes"]
    client = open_client(store[0])
    log_evaluation("codes", store[0], "zero-shot/../it's (mine)", result)  # again: not a second table
    names = set(client.get_run(row["run_id"]).data.metrics)
    assert not [name for name in names if "auroc" in name] and {name.split("/")[0] for name in names} == {"evaluation"}
    table = classes_of(client, row["run_id"], "zero-shot/-x2e-./it-x27-s -x28-mine-x29-")
    assert {each["code"]: each["auroc"] for each in table} == {code: k / 100 for k, code in enumerate(LABEL_CODES)}
    assert [each["auroc"] for each in table] == sorted((each["auroc"] for each in table), reverse=True)


def test_a_tag_that_is_no_figure_and_a_name_of_others_do_not_hide_the_list(
    store: tuple[str, Path], cardialign: Callable[..., Any]
) -> None:
    client = open_client(store[0])
    client.create_registered_model("theirs\x1b[2J")
    client.create_model_version(
        "theirs\x1b[2J", source="s3://elsewhere/x", tags={"metric.loss": "abc", "metric.ok": "0.5"}
    )
    listed = cardialign("registry", "list", "--tracking-uri", store[0], plain=True)
    assert listed.code == 0 and "\x1b" not in listed.out and "theirs\\x1b[2J" in listed.out
    rows = {row["name"]: row for row in list_models(store[0])}
    assert rows["theirs\x1b[2J"]["metrics"] == {"ok": 0.5}


def test_a_registry_of_the_environment_is_beside_the_store_of_the_environment(
    exported: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, registry = (
        f"sqlite:///{shutil.copy(empty_store, tmp_path / f'{name}.db')}" for name in ("runs", "models")
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    assert register(exported, "enc", tracking) == 1
    assert pull("enc@candidate", tmp_path / "pulled", tracking)["digest"] == verify_export(exported)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # now both stores are named by an option
    assert list_models(tracking) == [] and [row["name"] for row in list_models(registry)] == ["enc"]
