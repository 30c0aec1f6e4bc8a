"""`deploy/mlflow/` on a real PostgreSQL and a real S3: a run and its encoder pass through it with a password."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests.support.mlflow_server import BUCKET, SERVE, mlflow_server, postgres, s3
from tests.support.readme import ROOT
from tests.support.tiny_set import SMALL

COMPOSE, CONTAINERFILE = ROOT / "deploy" / "mlflow" / "compose.yaml", ROOT / "deploy" / "image" / "Containerfile"
PASSWORDS = {
    "admin": "an-admin's %word/of@4",
    "trainer": "a-trainers-word-of-12",
    "database": "of-the-database",
    "s3-access-key": "of-the-bucket",
    "s3-secret-key": "hidden-of-the-bucket",
}


def write_secrets(folder: Path, database: str) -> Path:
    folder.mkdir()
    values = {
        "postgres-uri": f"{database}mlflow",
        "postgres-users-uri": f"{database}users",
        "admin-password": PASSWORDS["admin"],
        "flask-key": "any long random text",
        "s3-access-key": PASSWORDS["s3-access-key"],
        "s3-secret-key": PASSWORDS["s3-secret-key"],
    }
    for name, value in values.items():
        (folder / name).write_text(value + "\n")
    return folder


def ask(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers its administrator."""
    import requests

    user = ("admin", PASSWORDS["admin"])
    answer = requests.post(f"{address}/api/2.0/mlflow/{path}", json=body, auth=user, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture
def command(shell: dict[str, str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`cardialign ...` with what MLflow's variables say: its JSON answer."""

    def run(*words: object, code: int = 0, **variables: str) -> dict[str, Any]:
        line = [sys.executable, "-m", "cardialign", *map(str, words), "--json"]
        done = subprocess.run(
            line, env={**shell, **variables}, cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        for secret in PASSWORDS.values():
            assert secret not in done.stdout + done.stderr
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    return run


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_a_run_is_tracked_and_its_encoder_registered_and_pulled_with_a_password(
    banked_shards: Path, tmp_path: Path, shell: dict[str, str], command: Callable[..., dict[str, Any]]
) -> None:
    pytest.importorskip("flask_wtf", reason="mlflow[auth] of the extra `server` is not installed")
    with (
        postgres(PASSWORDS["database"], ["mlflow", "users"]) as database,
        s3(tmp_path, PASSWORDS["s3-access-key"], PASSWORDS["s3-secret-key"]) as endpoint,
    ):
        secrets = write_secrets(tmp_path / "secrets", database)
        variables = {**shell, "ARTIFACTS": f"s3://{BUCKET}/artifacts", "MLFLOW_S3_ENDPOINT_URL": endpoint}
        with mlflow_server(tmp_path, secrets, variables) as address:
            lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            assert "basic-auth" in lines and not [word for word in PASSWORDS.values() if word in lines]
            ask(address, "users/create", {"username": "trainer", "password": PASSWORDS["trainer"]})

            who = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": "trainer"}
            who["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "120"  # the first request to a busy machine
            words = ["pretrain", "--recipe", "cardialign-demo", "--shards", banked_shards, "--workers", 1]
            words += ["--run-dir", tmp_path / "run", "--experiment", "tiny", "--register", "tiny-encoder"]
            words += [part for one in (*SMALL, "training.steps=4", "model.depth=1") for part in ("--set", one)]
            wrong = command(*words, code=1, **who, MLFLOW_TRACKING_PASSWORD="guessed")
            assert "does not answer" not in wrong["problem"] and "401" in wrong["problem"]
            assert "MLFLOW_TRACKING_PASSWORD" in wrong["remedy"] and not (tmp_path / "run").exists()

            who["MLFLOW_TRACKING_PASSWORD"] = PASSWORDS["trainer"]
            done = command(*words, **who)
            assert done["tracked"] is True and done["registered"] == "tiny-encoder" and done["version"] == 1
            name = "tiny-encoder@candidate"
            refused = command("registry", "pull", name, tmp_path / "p", code=1, MLFLOW_TRACKING_URI=address)
            assert "401" in refused["problem"] or "sign" in refused["problem"], refused
            pulled = command("registry", "pull", name, tmp_path / "pulled", **who)
            assert pulled["digest"] == done["digest_of_export"] and pulled["version"] == 1
        with mlflow_server(tmp_path, secrets, variables) as address:  # nothing was in its memory alone
            again = command("registry", "pull", name, tmp_path / "again", **{**who, "MLFLOW_TRACKING_URI": address})
            assert again["digest"] == pulled["digest"]
        kept = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        ).list_objects_v2(Bucket=BUCKET)["Contents"]
        assert any(item["Key"].endswith("model.safetensors") for item in kept)
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("run/export", "pulled", "again")]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize(
    ("missing", "told"),
    [("ARTIFACTS", "ARTIFACTS is not set"), ("admin-password", "admin-password is missing"), ("", "s3-secret-key")],
)
def test_the_server_says_what_it_lacks(missing: str, told: str, tmp_path: Path, shell: dict[str, str]) -> None:
    secrets = write_secrets(tmp_path / "secrets", "postgresql+psycopg://a:b@127.0.0.1:1/")
    (secrets / (missing or "s3-secret-key")).unlink(missing_ok=True)
    variables = {**shell, "SECRETS": str(secrets), "ARTIFACTS": "" if missing == "ARTIFACTS" else "s3://b/a"}
    done = subprocess.run(["sh", SERVE], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and "b@127" not in done.stderr


def test_an_endpoint_that_is_left_out_or_empty_is_none_and_nobody_waits_for_jobs(
    tmp_path: Path, shell: dict[str, str]
) -> None:
    """`compose.yaml` and a manifest hand an empty value on; boto3 refuses it as an address."""
    secrets = write_secrets(tmp_path / "secrets", "postgresql+psycopg://a:b@127.0.0.1:1/")
    server = tmp_path / "bin" / "mlflow"
    server.write_text('#!/bin/sh\necho "${MLFLOW_S3_ENDPOINT_URL-none} $MLFLOW_SERVER_ENABLE_JOB_EXECUTION"\n')
    server.chmod(0o755)
    variables = {**shell, "SECRETS": str(secrets), "ARTIFACTS": "s3://b/a", "TMPDIR": str(tmp_path)}
    for given, told in ({}, "none"), ({"MLFLOW_S3_ENDPOINT_URL": ""}, "none"), ({"MLFLOW_S3_ENDPOINT_URL": "x"}, "x"):
        done = subprocess.run(["sh", SERVE], env={**variables, **given}, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{told} false\n", done.stderr


@pytest.mark.slow
def test_the_compose_file_follows_the_specification() -> None:
    """The public Compose specification as `check-jsonschema` carries it: an unknown key is an error in it."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema of the extra `dev` is not installed")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_hands_the_server_what_it_reads() -> None:
    made = yaml.safe_load(COMPOSE.read_text())
    server, database = made["services"]["mlflow"], made["services"]["database"]
    assert set(server["secrets"]) == set(re.findall(r"\$\(secret ([\w-]+)\)", SERVE.read_text()))
    assert {name: one["file"] for name, one in made["secrets"].items()} == {
        name: f"secrets/{name}" for name in [*server["secrets"], *database["secrets"]]
    }
    assert database["environment"]["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{database['secrets'][0]}"
    for service in (server, database):
        assert set(service["networks"]) <= set(made["networks"]) and "no-new-privileges:true" in service["security_opt"]
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(made["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(made["configs"])
    assert server["ports"] == ["127.0.0.1:5000:5000"] and "ports" not in database, "the database is reached from inside"
    assert made["networks"]["inside"] == {"internal": True} and database["networks"] == ["inside"]
    (written,) = re.findall(r"^VOLUME (.+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert set(server["tmpfs"]) == set(json.loads(written)) and server["read_only"] is True
