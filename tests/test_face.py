"""`import cardialign` is what users write: few names, all there, none of them paid for before it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import cardialign

ROOT = Path(__file__).parent.parent


def test_there_are_at_most_twelve_names_and_each_is_what_it_says() -> None:
    assert sorted(cardialign.NAMES) == cardialign.__all__ and len(cardialign.__all__) <= 12
    for name in cardialign.__all__:
        found = getattr(cardialign, name)
        assert callable(found) and inspect.getdoc(found), f"{name} has no docstring"
    assert [name for name in dir(cardialign) if not name.startswith("__")] == sorted(cardialign.__all__)
    assert cardialign.__version__.count(".") == 2


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(cardialign.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    seen |= {target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    assert set(cardialign.__all__) <= seen
    assert (Path(cardialign.__file__).parent / "py.typed").is_file()


def test_a_name_that_is_not_there_says_which_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_model'; it has SetPlan, SignalSpec"):
        cardialign.load_model  # noqa: B018


def test_one_module_exists_once_however_it_is_reached() -> None:
    floors = ("kernels", "cluster", "pretrain", "data_shards")
    code = (
        "import sys, cardialign, cardialign.kernels.dispatch\n"
        "from cardialign.kernels import dispatch\n"
        "assert sys.modules['cardialign.kernels.dispatch'] is dispatch\n"
        f"print(*[name for name in sys.modules if name.split('.')[0] in {floors}])"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
