"""The whole way through a real `mlflow server`, whose clients see neither its database nor its disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.registry.test_signing import private_pem, public_pem
from tests.support.processes import free_port
from tests.support.registered import evaluated, registered
from tests.support.scored_records import scored_records

START_SECONDS = 180


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[str]:
    shutil.copy(empty_store, tmp_path / "server.db")
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    words += ["--artifacts-destination", str(tmp_path / "bucket")]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=tmp_path,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, tmp_path / "server.log")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no server within {START_SECONDS} s: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_register_evaluate_promote_sign_pull_and_roll_back_over_http(
    server: str, exported: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = private_pem(key, tmp_path / "key.pem"), public_pem(key, tmp_path / "key.pub.pem")

    def registry(*words: object) -> Any:
        return cardialign("registry", *words, "--tracking-uri", server)

    for version, strength in ((1, 1.5), (2, 0.5), (3, 1.5)):
        registered(exported, tmp_path / str(version), "served", server, steps=version)
        evaluated(f"served/{version}", tmp_path / str(version), server, scored_records(strength))
    promote = ("promote", "--to", "production", "--require", "clean-v2:ptb-xl-super", "--sign", private)
    assert registry(*promote, "served/1").code == 0
    worse = registry(*promote, "served/2")
    assert worse.code == 1 and "worse than production" in worse.json["problem"], worse.err
    assert registry(*promote, "served@candidate").json["before"] == 1
    pulled = registry("pull", "served@production", tmp_path / "pulled", "--verify", public)
    assert pulled.code == 0 and pulled.json["signed"]["model_version"] == 3, pulled.err
    assert registry("rollback", "served").json["version"] == 1
    shown = registry("show", "served@production")
    assert shown.json["version"] == 1 and shown.json["evaluations"][0]["n"] == 200
    assert "sqlite" not in shown.out
