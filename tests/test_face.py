"""`import cardialign` is what users write: few names, all there, none of them paid for before it is used."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import cardialign
from cardialign.cluster.commands import COMMANDS

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
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    seen |= {target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    assert set(cardialign.__all__) <= seen
    assert (Path(cardialign.__file__).parent / "py.typed").is_file()


def public_names() -> list[str]:
    """Every name that users write, sorted: of the package and the modules beside it, and the commands."""
    found = [f"cardialign.{name}" for name in cardialign.__all__]
    for path in Path(cardialign.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if path.stem != "__init__" and isinstance(node, ast.Assign) and node.targets[0].id == "__all__":  # type: ignore[attr-defined]
                found += [f"cardialign.{path.stem}.{name}" for name in ast.literal_eval(node.value)]
    return sorted([*found, *(f"$ cardialign {command}" for command in COMMANDS)])


def test_public_names_are_those_of_the_stored_list() -> None:
    """A name that comes is written there, one that goes was a deprecated one for two releases: see CONTRIBUTING."""
    assert public_names() == (ROOT / "tests" / "public_names.txt").read_text().splitlines()


def test_a_name_that_will_go_says_what_to_write_instead_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cardialign.NAMES, "read_recipe", cardialign.NAMES["load_recipe"])
    monkeypatch.setitem(cardialign.GOING, "read_recipe", ("cardialign.load_recipe", "0.4.0"))
    for _ in range(2):  # each time, not at the first import alone
        with pytest.warns(DeprecationWarning, match=r"read_recipe goes in 0\.4\.0: write cardialign\.load_recipe"):
            assert cardialign.read_recipe("cardialign-tiny") == cardialign.load_recipe("cardialign-tiny")
    assert set(cardialign.GOING) <= set(cardialign.NAMES), "it is there until it goes"


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


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("open_shards", (None,), "path is None"),
        ("open_shards", (3,), "path is 3"),
        ("open_shards", ("",), "path is ''"),
        ("load_encoder", ({"path": "x"},), "path is {'path': 'x'}"),
        ("load_recipe", (["cardialign-tiny"],), r"recipe is \['cardialign-tiny'\]"),
        ("train", ("cardialign-tiny", "run"), "config is 'cardialign-tiny'"),
        ("train", ({"name": "x"}, "run"), "config is {'name': 'x'}"),
        ("export", (b"run",), "run_dir is b'run'"),
        ("evaluate", ("export", "shards"), "encoder is 'export'"),
        ("draw_ecg", ("record.png",), "record is 'record.png'"),
        ("open_source", (3, "root"), "name is 3"),
        ("open_source", ("ptb-xl", None), "root is None"),
        ("build_shards", (object(), "out"), "source is <object"),
        ("build_shards", ("csn", "out"), "source is 'csn'"),
    ],
)
def test_a_wrong_kind_of_thing_is_named_with_what_to_give(name: str, arguments: tuple[object, ...], told: str) -> None:
    with pytest.raises(cardialign.UserError, match=rf"cardialign\.{name}: {told}") as caught:
        getattr(cardialign, name)(*arguments)
    assert caught.value.remedy.startswith("give ")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"folds": "10"}, "folds is '10'"),  # not folds 1 and 0
        ({"folds": "1-8"}, "folds is '1-8'"),
        ({"folds": 5}, "folds is 5"),
        ({"folds": [9.5]}, r"folds is \[9.5\]: not all"),
        ({"folds": [True]}, r"folds is \[True\]: not all"),
        ({"limit": "5"}, "limit is '5'"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": True}, "limit is True"),
        ({"records_per_shard": 1.5}, "records_per_shard is 1.5"),
        ({"spec": 500}, "spec is 500"),
        ({"spec": cardialign.SignalSpec(float("nan"))}, "sampling_rate is nan"),
        ({"spec": cardialign.SignalSpec(500, float("inf"))}, "seconds is inf"),
        ({"spec": cardialign.SignalSpec("500")}, "sampling_rate is '500'"),
        ({"spec": cardialign.SignalSpec(True)}, "sampling_rate is True"),
        ({"spec": cardialign.SignalSpec(-1)}, "sampling_rate is -1"),
    ],
)
def test_a_plan_holds_no_number_that_none_can_be(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(cardialign.UserError, match=told) as caught:
        cardialign.SetPlan(**wrong)
    assert caught.value.remedy.startswith(("give ", "set "))


def test_overrides_of_a_recipe_are_one_or_several_but_never_its_letters() -> None:
    one = cardialign.load_recipe("cardialign-tiny", "optimizer.lr=0.5")
    assert one == cardialign.load_recipe("cardialign-tiny", ["optimizer.lr=0.5"]) and one.optimizer.lr == 0.5
    for wrong in ({"optimizer.lr": 0.5}, None, 3, [3], b"seed=1"):
        with pytest.raises(cardialign.UserError, match="the overrides of a recipe are"):
            cardialign.load_recipe("cardialign-tiny", wrong)  # type: ignore[arg-type]


def test_public_functions_are_found_again_under_the_name_they_are_pickled_by() -> None:
    for name in cardialign.__all__:
        found = getattr(cardialign, name)
        assert pickle.loads(pickle.dumps(found)) is found
