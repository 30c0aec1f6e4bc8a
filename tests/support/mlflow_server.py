"""A real PostgreSQL, a real S3 server and an MLflow server on them, on 127.0.0.1 and each for one test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cardialign.cluster.drills.patience import Patience
from tests.support.processes import free_port
from tests.support.readme import ROOT

SERVE = ROOT / "deploy" / "mlflow" / "serve.sh"
BUCKET = "mlflow"


@contextlib.contextmanager
def postgres(password: str, databases: Sequence[str]) -> Iterator[str]:
    """The start of an address, up to the name of the database, of a server that asks for `password`."""
    found = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not any(found):
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    programs = Path(next(path for path in found if path)).resolve().parent
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp")), free_port()
    try:
        shutil.chown(folder, user)
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)

        def run(program: str, *words: str) -> None:
            done = subprocess.run(
                [programs / program, *words], user=user, cwd=folder, capture_output=True, text=True,
                env={**os.environ, "PGPASSWORD": password},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr

        data, at = str(folder / "data"), ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
        run("initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync")
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-o", settings, "-l", str(folder / "log"), "-w", "-t", "120", "start")
        try:
            for name in databases:
                run("createdb", *at, name)
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3(folder: Path, key: str, secret: str) -> Iterator[str]:
    """The address of an S3 server with a bucket of our name."""
    import boto3

    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with child(words, folder / "s3.log", os.environ) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/moto-api/", process, folder / "s3.log")
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret
        )
        client.create_bucket(Bucket=BUCKET)
        yield address


@contextlib.contextmanager
def mlflow_server(folder: Path, secrets: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Address of the server as `deploy/mlflow/serve.sh` starts it."""
    port = free_port()
    own = {"SECRETS": str(secrets), "HOST": "127.0.0.1", "PORT": str(port)}
    with child(["sh", str(SERVE)], folder / "mlflow.log", {**environment, **own}) as process:
        wait_for(f"http://localhost:{port}/health", process, folder / "mlflow.log")
        yield f"http://localhost:{port}"


@contextlib.contextmanager
def child(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts, ended together; it writes to `log`."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            words, env=dict(environment), stdout=stream, stderr=stream, start_new_session=True, cwd=log.parent
        )
    try:
        yield process
    finally:
        for number in (15, 9):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 150) -> None:
    patience = Patience(seconds)
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and not patience.over(), log.read_text()[-4000:]
            time.sleep(0.3)
