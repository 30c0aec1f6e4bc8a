"""Who follows CONTRIBUTING.md to the letter ends with a source, a method, an encoder and a command that pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.packaging.elsewhere import copied_sources
from tests.support.contributing import ROOT, recipe

pytestmark = pytest.mark.timeout(400)

HEADINGS = ("Add a data set", "Add a method", "Add an encoder", "Add a command")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the tree in which all four were added; runs programs of this interpreter in it."""
    tree = copied_sources(tmp_path_factory.mktemp("followed") / "tree")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(
            words, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-6000:]}"
        return done.stdout

    run("bash", "-euc", recipe("Add a data set").commands[0])  # copies the template
    for heading in HEADINGS:
        recipe(heading).write(tree)
    return run


def test_every_recipe_writes_files_and_a_row() -> None:
    found = [recipe(heading) for heading in HEADINGS]
    assert [len(one.files) for one in found] == [1, 3, 1, 2]
    assert [[table for _, table, _ in one.rows] for one in found] == [
        ["SOURCES"], ["METHODS"], ["ENCODERS", "CASES"], ["COMMANDS"],
    ]  # fmt: skip


@pytest.mark.slow
def test_what_was_written_passes_its_tests_and_those_of_its_room(followed: Run) -> None:
    printed = followed(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
        "tests/data_shards/sources/test_clinic.py", "tests/data_shards/sources/test_sources.py",
        "tests/pretrain/methods/test_clip.py", "tests/pretrain/config/test_config.py",
        "tests/pretrain/encoders/test_contract.py", "tests/cluster/commands/test_shards_keys.py",
        "-k", "clinic or clip or patch-mean or keys",
    )  # fmt: skip
    assert " passed" in printed and "failed" not in printed
    assert int(printed.rsplit(" passed", 1)[0].split()[-1]) >= 20, "a case per promise of an encoder, and the others"


@pytest.mark.slow
def test_what_was_written_keeps_the_rules_of_the_house(followed: Run) -> None:
    followed(sys.executable, "-m", "ruff", "check", "cluster", "pretrain", "data_shards", "tests")
    followed(sys.executable, "-m", "ruff", "format", "--check", "cluster", "pretrain", "data_shards", "tests")
    written = [name for heading in HEADINGS for name in recipe(heading).files if name.endswith(".py")]
    followed(sys.executable, "-m", "ruff", "check", "--select", "E501", *written)
    rules = "not page and not columns and not light"  # pages and the prose of the tree as it is have tests of their own
    followed(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", "-k", rules)


def test_the_words_are_known_to_the_command_line(followed: Run) -> None:
    counted = followed(sys.executable, "-m", "cardialign", "recipes", "list", "clip-tiny")
    assert "clip-tiny" in counted and "clip " in counted
    assert "clinic" in followed(sys.executable, "-m", "cardialign", "shards", "build", "--help")
    assert "keys" in followed(sys.executable, "-m", "cardialign", "shards", "--help")
