"""The layout is part of the product: floors, rooms, circles, crowds, sizes, and a page for every floor.

Each rule is tried on the tree as it is, and on a small tree that breaks it: a rule that cannot fail holds nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import house

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """A tree with the four floors and the files given (path -> text)."""

    def make(files: dict[str, str]) -> Path:
        for floor in house.FLOORS:
            (tmp_path / floor).mkdir(exist_ok=True)
            (tmp_path / floor / "__init__.py").touch()
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(text)
        return tmp_path

    return make


def test_a_floor_imports_only_from_the_floors_under_it() -> None:
    assert house.upward_floors(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("kernels/a.py", "from cardialign.pretrain import b", "is not under kernels"),
        ("data_shards/a.py", "def f():\n    import cardialign.cluster.main", "is not under data_shards"),
        ("data_shards/a.py", "import torch", "must not know it"),
        ("pretrain/a.py", "def f():\n    from ray import train", "must not know it"),
        ("cluster/a.py", "import kernels.contrastive", "by its bare name"),
        ("cluster/a.py", "from data_shards.record import EcgRecord", "by its bare name"),
    ],
)
def test_an_import_upwards_a_foreign_one_and_a_bare_name_are_seen(
    tree: Callable, file: str, line: str, complaint: str
) -> None:
    found = house.upward_floors(tree({file: line}))
    assert found and all(complaint in text for text in found)


def test_rooms_of_a_floor_import_downwards_only_and_in_no_circle() -> None:
    assert house.upward_rooms(ROOT) == []
    assert house.room_circles(ROOT) == []


def test_an_import_of_a_room_above_and_a_circle_of_rooms_are_seen(tree: Callable) -> None:
    up = tree(
        {
            "pretrain/config/a.py": "def f():\n    from cardialign.pretrain.methods.b import c",
            "pretrain/methods/b.py": "",
        }
    )
    assert house.upward_rooms(up) == [
        "cardialign.pretrain.config.a imports cardialign.pretrain.methods.b, which lies above it"
    ]
    rooms = {
        "cluster/x/a.py": "from cardialign.cluster.y import b",
        "cluster/y/b.py": "",
        "cluster/y/c.py": "from cardialign.cluster.x import d",
        "cluster/x/d.py": "",
    }
    assert house.room_circles(tree(rooms)) == ["cluster/x -> cluster/y -> cluster/x"]
    assert "cardialign.pretrain.attic.a: room attic is in no plan" in house.upward_rooms(
        tree({"pretrain/attic/a.py": ""})
    )


def test_no_module_is_part_of_an_import_circle_however_it_is_imported() -> None:
    assert house.circles(house.graph(ROOT)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from cardialign.kernels import a",
        "import cardialign.kernels.a",
        "def f():\n    from cardialign.kernels.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cardialign.kernels.a import x",
    ],
)
def test_a_circle_is_seen_at_the_top_inside_a_function_and_under_type_checking(tree: Callable, line: str) -> None:
    root = tree({"kernels/a.py": "from cardialign.kernels.b import y", "kernels/b.py": line})
    assert house.circles(house.graph(root)) == ["cardialign.kernels.a -> cardialign.kernels.b -> cardialign.kernels.a"]


def test_folders_are_not_crowded() -> None:
    assert house.crowded_folders(ROOT) == []


def test_a_crowd_and_a_folder_in_disguise_are_seen(tree: Callable) -> None:
    root = tree({f"kernels/room/{letter}.py": "" for letter in "abcdefghijklmnop"})
    assert house.crowded_folders(root) == ["kernels/room has 16 modules"]
    root = tree({f"cluster/report_{word}.py": "" for word in ("page", "style", "chart")})
    assert "cluster: 3 modules begin with report" in house.crowded_folders(root)


DATA = ["data_shards.shard_set", "data_shards.order", "data_shards.stream", "data_shards.text"]


def test_who_reads_a_set_never_imports_who_builds_one() -> None:
    assert house.forbidden(ROOT, DATA, ["data_shards.build", "data_shards.sources"]) == []


def test_a_reader_that_reaches_the_builder_is_seen_on_any_way(tree: Callable) -> None:
    files = {
        "data_shards/stream/a.py": "from cardialign.data_shards.signal import b",
        "data_shards/signal/b.py": "def f():\n    from cardialign.data_shards.build import c",
        "data_shards/build/c.py": "",
    }
    found = house.forbidden(tree(files), DATA, ["data_shards.build"])
    assert found == ["cardialign.data_shards.stream.a reaches cardialign.data_shards.build.c"]


def loaded(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import cardialign.pretrain.config", {"torch", "pyarrow", "scipy", "pandas", "triton"}),
        ("import cardialign", {"torch", "numpy", "pyarrow", "pydantic", "yaml", "ray", "mlflow"}),
        ("import cardialign.cluster.main", {"torch", "numpy", "pyarrow", "pydantic", "ray", "mlflow", "jinja2"}),
        ("import cardialign.pretrain.export.opening", {"yaml", "pyarrow", "scipy", "pandas", "transformers", "mlflow"}),
        (
            "import cardialign.mlflow",
            {"yaml", "pyarrow", "scipy", "pandas", "transformers", "mlflow", "ray", "deepspeed"},
        ),
        ("import cardialign.pretrain.methods.cardialign", {"pyarrow", "scipy", "pandas", "transformers", "deepspeed"}),
    ],
)
def test_what_is_opened_first_stays_light(statement: str, heavy: set[str]) -> None:
    assert loaded(statement) & heavy == set()


def test_a_name_that_only_tests_use_does_not_live_in_the_product() -> None:
    assert house.names_for_tests_alone(ROOT) == []


def test_a_name_without_a_caller_is_seen(tree: Callable) -> None:
    root = tree(
        {
            "kernels/a.py": "def used(): ...\ndef lonely(): ...\n",
            "kernels/b.py": "from cardialign.kernels.a import used\n",
        }
    )
    assert house.names_for_tests_alone(root) == ["kernels/a.py:2 lonely"]


def test_nothing_is_unpickled_that_may_hold_code() -> None:
    assert house.unpickled(ROOT) == []


def test_whatever_unpickles_is_seen(tree: Callable) -> None:
    lines = [
        "pickle.load(stream)",
        "torch.load(path)",
        "torch.load(f(path), map_location=x)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
    ]
    root = tree({"pretrain/a.py": "\n".join([*lines, "torch.load(f(path), weights_only=True)", "np.load(path)"])})
    assert {int(line.split(":")[1].split()[0]) for line in house.unpickled(root)} == {1, 2, 3, 4, 5}


REVEALS = {
    "cluster/completion/endpoint.py",
    "cluster/jobs/client.py",
    "cluster/registry/signing.py",
    "data_shards/sources/shared/folder.py",
    "data_shards/sources/shared/patients.py",
    "data_shards/sources/shared/pseudonyms.py",
    "pretrain/export/exposure/certificate.py",
    "pretrain/export/exposure/hashes.py",
    "pretrain/export/exposure/salt.py",
}


def test_a_secret_is_revealed_in_few_places() -> None:
    files = [path for floor in house.FLOORS for path in (ROOT / floor).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in files if ".reveal()" in path.read_text()} == REVEALS


def test_every_kind_of_file_comes_in_by_one_door() -> None:
    assert house.side_doors(ROOT) == []


def test_a_side_door_is_seen(tree: Callable) -> None:
    lines = [
        "json.loads(text)",
        "yaml.safe_load(text)",
        "np.load(path)",
        "torch.load(path, weights_only=True)",
        "from safetensors.torch import load, save",
    ]
    root = tree({f"pretrain/{letter}.py": line for letter, line in zip("abcde", lines, strict=True)})
    assert [each[:13] for each in house.side_doors(root)] == [f"pretrain/{letter}.py:"[:13] for letter in "abcde"]
    assert house.side_doors(tree({f"pretrain/{letter}.py": "json.loads(json.dumps(x))" for letter in "abcde"})) == []


def test_modules_functions_and_parameter_lists_stay_small() -> None:
    assert house.sizes(ROOT) == []
    lines = [len(p.read_text().splitlines()) for p in house.modules(ROOT).values() if p.name != "__init__.py"]
    assert statistics.median(lines) < 200


def test_what_is_too_long_is_seen(tree: Callable) -> None:
    root = tree(
        {
            "kernels/long.py": "x = 1\n" * 401,
            "cluster/tall.py": "def f():\n" + "    pass\n" * 60,
            "cluster/many.py": "def f(a, b, c, d, e, f, g, h, i): ...\n"
            "class C:\n    def g(self, a, b, c, d, e, f, g, h): ...\n",
            "kernels/contrastive/triton/tile.py": "def f(a, b, c, d, e, f, g, h, i): ...\n",
        }
    )
    assert house.sizes(root) == [
        "cluster/many.py:1 f has 9 parameters",
        "cluster/tall.py:1 f has 61 lines",
        "kernels/long.py has 401 lines",
    ]


def pages() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.split()] or sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/README.md"))


def test_prose_and_code_keep_to_120_columns() -> None:
    assert house.wide_lines([*house.modules(ROOT).values(), *pages()]) == []


def test_a_wide_line_is_seen_and_tables_and_code_blocks_are_let_be(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("x" * 121 + "\n| " + "x" * 130 + "\n```\n" + "x" * 130 + "\n```\n" + "y" * 120 + "\n")
    assert house.wide_lines([page]) == [f"{page}:1 has 121 columns"]


def test_inits_are_empty_hold_a_table_or_hand_on_names() -> None:
    assert house.busy_inits(ROOT) == []


def test_an_init_that_does_something_is_seen(tree: Callable) -> None:
    root = tree({"kernels/room/a.py": ""})
    (root / "kernels" / "room" / "__init__.py").write_text("class Worker:\n    def run(self): ...\n")
    (root / "kernels" / "__init__.py").write_text("for name in ():\n    pass\n")
    assert house.busy_inits(root) == ["kernels/__init__.py does something", "kernels/room/__init__.py does something"]


@pytest.mark.parametrize("package", [*house.FLOORS, "deploy"])
def test_every_floor_has_its_page(package: str) -> None:
    lines = (ROOT / package / "README.md").read_text().splitlines()
    assert 5 < len(lines) <= 50, (
        f"{package}/README.md has {len(lines)} lines; it is one page that holds the mental model"
    )
