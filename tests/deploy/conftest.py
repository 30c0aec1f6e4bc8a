"""A tiny shard set with its text bank, and a shell in which `cardialign` is the one that is tested."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.readme import ROOT
from tests.support.tiny_set import make_tiny_cohort, make_tiny_shards

PATIENT_RAY = {"RAY_raylet_start_wait_time_s": "60", "RAY_gcs_server_port_wait_time_s": "180"}
"""A `ray start` that shares two cores with others is not there within the usual 30 s."""


@pytest.fixture(scope="session")
def banked_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cardialign.cluster.runs.text_bank import ensure_text_bank
    from cardialign.pretrain.config import TextConfig

    folder = tmp_path_factory.mktemp("tiny")
    shards = make_tiny_shards(folder, make_tiny_cohort(folder))
    ensure_text_bank(shards, TextConfig())
    return shards


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Environment variables; `cardialign`, `ray`, `mlflow` and Python are those of these tests."""
    program = tmp_path / "bin" / "cardialign"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cardialign "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PATH": path, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **PATIENT_RAY}


@pytest.fixture(scope="session")
def definitions(real_data: Path) -> Path:
    """KubeRay's own resource definitions."""
    if not (real_data / "kuberay").is_dir():
        pytest.skip(f"{real_data} has no folder kuberay with the operator's resource definitions")
    return real_data / "kuberay"
