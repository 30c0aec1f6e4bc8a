"""The environment check tells what is there and what is not, with the way out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.environment import doctor


def test_here_everything_needed_is_there(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    answer = cardialign("doctor", "--run-dir", tmp_path)
    states = {check["name"]: check["state"] for check in answer.json["checks"]}
    assert answer.code == 0 and answer.json["missing"] == []
    assert all(states[name] == "ok" for name in ("python", "torch", "deepspeed", "ray", "mlflow", "text encoder"))
    assert {"memory", "cores", "shared memory", "open files", "run folder", "accelerator"} <= set(states)
    plain = cardialign("doctor", "--run-dir", tmp_path, plain=True)
    assert any(line.startswith("ok ") and "torch" in line for line in plain.out.splitlines())


def test_a_missing_package_fails_with_its_remedy(
    cardialign: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "" if name == "deepspeed" else real(name))
    answer = cardialign("doctor")
    assert answer.code == 1 and answer.json["missing"] == ["deepspeed"]
    check = next(check for check in answer.json["checks"] if check["name"] == "deepspeed")
    assert "--no-build-isolation" in check["remedy"]


def test_the_distribution_with_the_name_of_our_package_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "0.9" if name == "kernels" else "")
    check = doctor._kernels_clash()
    assert check.state == "warn" and "pip uninstall kernels" in check.remedy


def test_a_missing_text_encoder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor._text_encoder().state == "warn"


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    assert doctor.cgroup_memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.cgroup_memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert doctor.cgroup_memory_limit(tmp_path) == 4 * 2**30
