"""The environment check tells what is there and what is not, with the way out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.environment import doctor
from cardialign.data_shards.sources import SOURCES
from cardialign.pretrain.choices import METHODS
from tests.support.plug_ins import install, see


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


def package(root: Path) -> Path:
    """A folder `cardialign` below `root`, with one of our folders in it."""
    (root / "cardialign" / "cluster").mkdir(parents=True)
    for folder in (root / "cardialign", root / "cardialign" / "cluster"):
        (folder / "__init__.py").touch()
    return root / "cardialign"


def test_a_second_copy_of_the_package_is_named_whether_on_the_path_or_behind_an_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout, other, site = tmp_path / "checkout", tmp_path / "other", tmp_path / "site"
    first, second = package(checkout), package(other)
    monkeypatch.setattr(doctor, "source_root", lambda: checkout)
    monkeypatch.setattr(sys, "path", [str(checkout)])
    assert doctor._package() == doctor.Check("package", "ok", str(first))
    monkeypatch.setattr(sys, "path", [str(checkout), str(other)])
    check = doctor._package()
    assert check.state == "warn" and str(first) in check.found and str(second) in check.found and check.remedy

    installed = site / "cardialign-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Name: cardialign\nVersion: 0.1.0\n")
    for root, state in ((other, "warn"), (checkout, "ok")):
        origin = {"url": root.as_uri(), "dir_info": {"editable": True}}
        (installed / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.setattr(sys, "path", [str(checkout), str(site)])
        check = doctor._package()
        assert check.state == state and (str(second) in check.found) == (root == other)


def test_a_folder_of_ours_that_answers_without_cardialign_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = package(tmp_path) / "cluster"
    monkeypatch.setattr(doctor, "source_root", lambda: tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor._bare_names().state == "ok"
    (tmp_path / "cluster").symlink_to(folder, target_is_directory=True)
    importlib.invalidate_caches()
    check = doctor._bare_names()
    assert check.state == "warn" and "`import cluster`" in check.found and "PYTHONPATH" in check.remedy


def test_a_missing_text_encoder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor._text_encoder().state == "warn"


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    assert doctor.cgroup_memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.cgroup_memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert doctor.cgroup_memory_limit(tmp_path) == 4 * 2**30


def test_plugins_are_listed_and_a_broken_one_is_a_warning(
    cardialign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from cardialign.data_shards.sources.template import Template as Clinic\n"
    install(tmp_path, "clinic_fine", code, {"fine-clinic": "clinic_fine:Clinic"}, "cardialign.sources")
    see(tmp_path, SOURCES, monkeypatch)
    install(tmp_path, "clinic_broken", "1 / 0\n", {"broken-method": "clinic_broken:Method"}, "cardialign.methods")
    see(tmp_path, METHODS, monkeypatch)
    answer = cardialign("doctor", "--run-dir", tmp_path)
    checks = [check for check in answer.json["checks"] if check["name"].startswith("plug-in")]
    told = {check["found"]: (check["state"], check["remedy"]) for check in checks}
    assert told["source fine-clinic from clinic_fine:Clinic"] == ("ok", "")
    broken = next(found for found in told if "broken-method" in found)
    assert "plug-in of clinic_broken and cannot be imported" in broken and told[broken][0] == "warn" and told[broken][1]


def test_a_check_that_breaks_is_a_line_and_the_others_are_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> bool:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("torch.cuda.is_available", broken)
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    assert checks["cuda"].state == "missing" and "libcudart.so.13" in checks["cuda"].found and checks["cuda"].remedy
    assert checks["memory"].state in ("ok", "warn") and "run folder" in checks
