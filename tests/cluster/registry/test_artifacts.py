"""A registry is a server of others: it does not choose what this machine reads, connects to, or how much it takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.registry.registry import pull, register
from cardialign.cluster.tracking.places import check_place
from cardialign.data_shards.errors import DataError, UserError
from cardialign.pretrain.run.integrity import verify_export, write_digests
from tests.support.lying_registry import LyingRegistry

HTTP, FILE = "https://mlflow.lab.example:5000", "sqlite:////home/me/mlflow.db"
ALLOWED = [
    (HTTP, "mlflow-artifacts:/1/abc/artifacts/encoders/d"),
    (HTTP, "mlflow-artifacts://mlflow.lab.example:5000/1"),
    (HTTP, "https://MLFLOW.lab.example:5000/api/2.0/mlflow-artifacts/artifacts/1"),
    ("https://mlflow.lab.example", "https://mlflow.lab.example:443/1"),
    (HTTP, "s3://bucket/1/abc"),
    (HTTP, "gs://bucket/1/abc"),
    (HTTP, "abfss://box@account.dfs.core.windows.net/1"),
    (HTTP, "wasbs://box@account.blob.core.chinacloudapi.cn/1"),
    (FILE, "/home/me/mlartifacts/1"),
    (FILE, "file:///home/me/ml%20artifacts/1"),
    (FILE, "s3://bucket/1/abc"),
]
REFUSED = [
    "file:///etc",
    "/home/me/private",
    "relative/folder",
    "FILE:///etc",
    "file://nas/share",
    "http://mlflow.lab.example:5000/1",
    "https://mlflow.lab.example:5001/1",
    "https://mlflow.lab.example.evil.example:5000/1",
    "https://evil.example/1",
    "https://me:secret@mlflow.lab.example:5000/1",
    "http://169.254.169.254/latest/meta-data",
    "mlflow-artifacts://evil.example/1",
    "mlflow-artifacts://mlflow.lab.example:22/1",
    "mlflow-artifacts://x@mlflow.lab.example:5000@evil.example/1",
    "runs:/abc/encoder",
    "models:/other/1",
    "ftp://evil.example/x",
    "sftp://evil.example/x",
    "hdfs://evil.example/x",
    "dbfs:/x",
    "databricks://x",
    "data:text/plain,x",
    "s3://evil.example:80/x",
    "s3://me:secret@bucket/x",
    "s3:///x",
    "abfss://box@account.dfs.core.evil.example/1",
    "wasbs://box@account.blob.core.windows.net.evil.example/1",
    "wasbs://evil.example/1",
    "s3://bucket/x?endpoint=evil.example",
    "s3://bucket/x#y",
    "https://[broken/1",
    "mlflow-artifacts:/1\n",
    "\\\\nas\\share",
    "",
]


@pytest.mark.parametrize(("registry", "source"), ALLOWED)
def test_artifacts_lie_on_the_registry_itself_in_a_store_of_a_cloud_or_beside_a_file(
    registry: str, source: str
) -> None:
    check_place(source, registry, "enc/1")


@pytest.mark.parametrize("source", REFUSED)
def test_a_server_names_no_place_of_this_machine_and_no_other_server(source: str) -> None:
    with pytest.raises(DataError, match="enc/1: its artifacts are said to lie at") as raised:
        check_place(source, HTTP, "enc/1")
    assert raised.value.remedy and "secret" not in raised.value.problem and "\n" not in raised.value.problem


def test_a_folder_that_the_user_names_may_be_named_by_a_server_and_nothing_that_leads_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, private = tmp_path / "shared", tmp_path / "shared-not"
    (shared / "1").mkdir(parents=True)
    private.mkdir()
    (shared / "out").symlink_to(private)
    monkeypatch.setenv("CARDIALIGN_ARTIFACTS", f"/mnt/other:{shared}")
    check_place(str(shared / "1"), HTTP, "enc/1")
    for source in (private, shared / "out", f"{shared}/../shared-not", f"file://{private}"):
        with pytest.raises(DataError, match="a server has no say over"):
            check_place(str(source), HTTP, "enc/1")


@pytest.fixture(scope="module")
def lying() -> Iterator[LyingRegistry]:
    with LyingRegistry.running() as server:
        yield server


@pytest.fixture
def served(lying: LyingRegistry, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LyingRegistry:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lying.reset({path.name: path.read_bytes() for path in exported.iterdir()}, {"digest": verify_export(exported)})
    return lying


def refused(server: LyingRegistry, tmp_path: Path, said: str, **options: Any) -> str:
    with pytest.raises(UserError, match=said) as raised:
        pull("enc/1", tmp_path / "out", server.uri, **options)
    assert raised.value.remedy and [path.name for path in tmp_path.iterdir()] == []
    return raised.value.problem


def test_an_honest_server_hands_out_its_encoder(served: LyingRegistry, exported: Path, tmp_path: Path) -> None:
    assert pull("enc/1", tmp_path / "out", served.uri)["files"] == len(list(exported.iterdir()))


@pytest.mark.parametrize(
    "name",
    [
        "code/MLmodel",
        "MLproject",
        "evil.py",
        "python_model.pkl",
        "pytorch_model.bin",
        "text/tokenizer.json",
        "digests.json.exe",
        "a\x1b[2Jb",
        "~",
    ],
)
def test_a_file_that_no_encoder_has_is_named_and_nothing_is_fetched(
    served: LyingRegistry, tmp_path: Path, name: str
) -> None:
    served.files[name] = b"import os"
    problem = refused(served, tmp_path, "no encoder holds|Invalid path")
    assert served.sent == [] and "\x1b" not in problem


def test_what_lies_there_for_mlflow_is_left_there(served: LyingRegistry, tmp_path: Path) -> None:
    for name in ("MLmodel", "requirements.txt", "input_example.json", "registered_model_meta"):
        served.files[name] = b"loader_module: evil"
    pull("enc/1", tmp_path / "out", served.uri)
    assert not {"MLmodel", "requirements.txt"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert not [each for each in served.sent if "MLmodel" in str(each)]


@pytest.mark.parametrize("name", ["../../escaped.txt", "/tmp/escaped.txt", "..%2f..%2fescaped.txt", "a/../../x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(served: LyingRegistry, tmp_path: Path, name: str) -> None:
    served.files[name] = b"owned"
    refused(served, tmp_path, "no encoder holds|Invalid path|cannot be fetched")
    assert served.sent == []


def test_a_missing_file_is_named(served: LyingRegistry, tmp_path: Path) -> None:
    del served.files["model.safetensors"]
    refused(served, tmp_path, r"model\.safetensors: missing")


def test_a_changed_file_is_named(served: LyingRegistry, tmp_path: Path) -> None:
    served.files["config.json"] += b" "
    refused(served, tmp_path, r"config\.json: content changed")


def test_an_encoder_that_was_swapped_with_its_digests_is_refused(served: LyingRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "swapped"
    folder.mkdir()
    for name, content in served.files.items():
        (folder / name).write_bytes(content)
    (folder / "provenance.json").write_text("{}")
    (folder / "digests.json").unlink()
    write_digests(folder)
    served.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    digest = verify_export(folder)
    shutil.rmtree(folder)
    refused(served, tmp_path, "not the encoder that was registered")
    served.tags = {}
    refused(served, tmp_path, "no tag `digest`")
    served.tags = {"digest": digest}
    refused(served, tmp_path, "expected was ffff", expected="f" * 64)


@pytest.mark.parametrize("source", ["file:///etc", "/etc", "mlflow-artifacts://127.0.0.1:9/enc", "http://127.0.0.1:9/"])
def test_a_pull_asks_no_place_that_the_server_chose(served: LyingRegistry, tmp_path: Path, source: str) -> None:
    served.source = source
    refused(served, tmp_path, "are said to lie at")


def test_what_is_announced_too_large_is_not_fetched(served: LyingRegistry, tmp_path: Path) -> None:
    served.sizes["model.safetensors"] = 1 << 50
    refused(served, tmp_path, "larger than")
    assert served.sent == []


@pytest.mark.parametrize("name", ["digests.json", "model.safetensors"])
def test_what_grows_larger_than_it_was_announced_ends_at_the_limit(
    served: LyingRegistry, tmp_path: Path, name: str
) -> None:
    served.files[name] = b" " * (8 << 20)
    served.sizes[name] = 10
    refused(served, tmp_path, r"is larger than 0\.004", most=4 << 20)


def test_nothing_is_written_to_a_place_that_the_server_chose(
    served: LyingRegistry, exported: Path, tmp_path: Path
) -> None:
    served.artifact_uri = f"file://{tmp_path}/victim"
    with pytest.raises(UserError, match="are said to lie at"):
        register(exported, "enc", served.uri, "r" * 32)
    assert not (tmp_path / "victim").exists()


def test_one_version_that_is_none_hides_no_other(served: LyingRegistry) -> None:
    from cardialign.cluster.registry.registry import list_models

    good = served.version()
    odd = [{**good, "version": word} for word in ("x", "-1", "9" * 5000, "1.5")]
    served.versions = [*odd, good, {**good, "tags": [{"key": "metric.a", "value": "nan"}] * 2}]
    assert [row["version"] for row in list_models(served.uri)].count(1) == 2


def test_a_training_sends_nothing_to_a_place_that_the_server_chose(served: LyingRegistry, tmp_path: Path) -> None:
    from cardialign.cluster.tracking.mlflow_store import open_client
    from cardialign.cluster.tracking.replay import Replay
    from cardialign.cluster.tracking.state import TrackingState

    state = TrackingState(served.uri, "experiment", "run", run_id="r" * 32, parameters={"seed": "1"})
    served.artifact_uri = f"file://{tmp_path}/victim"
    replay = Replay(tmp_path, state, open_client(served.uri))
    for send in (replay.open_run, replay.close_run):
        with pytest.raises(UserError, match="are said to lie at"):
            send()
    assert not (tmp_path / "victim").exists()
