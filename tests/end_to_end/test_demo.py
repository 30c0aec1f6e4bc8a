"""`make demo` is what the README says and prints what it shows; `make test` is the whole check."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.readme import ROOT, TUTORIAL, block_with, run


def test_make_test_is_lint_types_and_tests() -> None:
    tools = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(word in tools for word in ("ruff check", "ruff format --check", "mypy", "pytest"))


def test_the_readme_shows_rows_of_the_table_of_the_tutorial() -> None:
    shown = block_with("macro, 29 classes", "text").splitlines()
    assert set(shown) <= set(block_with("macro, 29 classes", "text", TUTORIAL).splitlines()) and len(shown) > 8


def test_the_readme_is_one_screen_with_three_doors() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 90
    for door in ("platform", "researcher", "consumer"):
        assert f"deploy/site/docs/users/{door}.md" in text


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
        for page in ("README.md", TUTORIAL):
            assert shown in block_with("macro, 29 classes", "text", page), f"{page} shows what the demo prints"
