"""`make demo` is what the README says and prints what it shows; `make test` is the whole check."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.readme import ROOT, block_with, run


def test_make_test_is_lint_types_and_tests() -> None:
    tools = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(word in tools for word in ("ruff check", "ruff format --check", "mypy", "pytest"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_make_demo_is_what_the_readme_says_and_prints_what_it_shows(tmp_path: Path, shell: dict[str, str]) -> None:
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in recipe.splitlines() if "cardialign demo" in line)
    command = command[command.index("cardialign demo") :]
    printed = run(f"{command} --patients 40 --unseen-patients 20", tmp_path, shell)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000
    for shown in (
        "class",
        "AUROC",
        "untrained",
        "macro, 29 classes",
        "report     demo/report.html",
        "mlflow ui --backend-store-uri",
    ):
        assert shown in printed
        assert shown in block_with("macro, 29 classes", "text"), "the README shows what the demo prints"
