"""A source, a method, an encoder and prompts in a package of their own, as CONTRIBUTING.md gives it.

Installed beside us, it trains under Ray, is exported and evaluated by the commands of every other run; without it, its
words are named as unknown.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from tests.support.contributing import ROOT, recipe
from tests.support.readme import run
from tests.support.tiny_set import make_tiny_cohort, make_tiny_shards
from tests.support.tiny_shards import HashingEncoder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

PACKAGE = "In a package of your own"
MODULES = {
    "source.py": "data_shards/sources/clinic.py",
    "clip.py": "pretrain/methods/clip.py",
    "patch_mean.py": "pretrain/encoders/patch_mean.py",
}
"""Module of the package -> the file of ours that the page moves there."""


def sources_of_ours(folder: Path) -> dict[str, str]:
    """The files that the recipes for our own tree write, by path; the source is the template under another name."""
    (folder / "data_shards" / "sources").mkdir(parents=True)
    template = "data_shards/sources/template.py"
    (folder / template).write_text((ROOT / template).read_text())
    run(recipe("Add a data set").commands[0], folder, dict(os.environ))
    clinic = {MODULES["source.py"]: (folder / MODULES["source.py"]).read_text()}
    return clinic | recipe("Add a method").files | recipe("Add an encoder").files


def install(folder: Path) -> Path:
    """The package written, built and installed; the folder to put on the path."""
    for name, text in recipe(PACKAGE).files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    ours = sources_of_ours(folder / "ours")
    for name, path in MODULES.items():
        (folder / "clinic-ecg" / "clinic_ecg" / name).write_text(ours[path])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", folder / "clinic-ecg"], check=True, timeout=120)
    return folder / "site"


def clinic_folder(folder: Path) -> Path:
    """A data set in the layout that the source reads."""
    folder.mkdir()
    lines = ["record,patient,age,sex,report"]
    for number in range(6):
        np.save(folder / f"e{number}.npy", np.random.default_rng(number).normal(0, 0.3, (12, 5000)))
        lines.append(f"e{number},{number // 2},{50 + number},F,Sinus rhythm.|Normal ECG")
    (folder / "records.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_package_of_its_own_is_built_trained_exported_and_evaluated(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "cardialign"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cardialign "$@"\n')
    program.chmod(0o755)
    shards = make_tiny_shards(tmp_path / "work", make_tiny_cohort(tmp_path))
    build_text_bank(ShardSet.open(shards), HashingEncoder())
    without = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CLINIC": str(clinic_folder(tmp_path / "clinic")),
    }
    site = install(tmp_path)

    printed = run(
        recipe(PACKAGE).commands[1], tmp_path, {**without, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}, deadline=300
    )
    assert "zero-shot, clinic-v1" in printed and "Atrial fibrillation" in printed
    assert ShardSet.open(tmp_path / "work" / "clinic").read_record(0).source == "clinic"
    export = tmp_path / "work" / "plugged" / "export"
    config = json.loads((export / "config.json").read_text())
    assert (config["method"]["name"], config["encoder"]["name"]) == ("clip", "patch-mean")
    losses = [json.loads(line)["loss"] for line in (export.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and np.isfinite(losses).all()

    words = ["export", export.parent, "--out", tmp_path / "again", "--json"]
    refused = subprocess.run([program, *words], env=without, capture_output=True, text=True, timeout=120)
    problem = json.loads(refused.stdout.splitlines()[-1])["problem"]
    assert refused.returncode == 2 and "unknown method 'clip'" in problem and "unknown encoder 'patch-mean'" in problem
