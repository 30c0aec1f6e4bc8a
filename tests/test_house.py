"""The layout is part of the product: floors, circles, module sizes, and a page for every package."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "cluster": {"cluster", "pretrain", "data_shards", "kernels"},
    "pretrain": {"pretrain", "data_shards", "kernels"},
    "data_shards": {"data_shards"},
    "kernels": {"kernels"},
}
FORBIDDEN = {
    "pretrain": {"ray", "mlflow"},
    "data_shards": {"ray", "mlflow", "torch", "deepspeed", "transformers"},
    "kernels": {"ray", "mlflow"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FLOORS)
def test_a_floor_imports_only_from_the_floors_under_it(package: str) -> None:
    for path in modules(package):
        tops = {name.split(".")[0] for name in imported(path)}
        upward = tops & (set(FLOORS) - FLOORS[package])
        assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}, which is not under {package}"
        foreign = tops & FORBIDDEN.get(package, set())
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}; {package} must not know it"


def test_no_module_is_part_of_an_import_circle() -> None:
    known = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for f in FLOORS
        for p in modules(f)
    }
    graph = {
        name: {n for n in imported(path, top_level_only=True) if n in known and n != name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for after in sorted(graph[name]):
                visit(after, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_modules_stay_small() -> None:
    sizes = {p: len(p.read_text().splitlines()) for f in FLOORS for p in modules(f) if p.name != "__init__.py"}
    crowded = {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 500}
    assert not crowded, f"over 500 lines, cut by subject: {crowded}"
    assert statistics.median(sizes.values()) < 200


@pytest.mark.parametrize("package", [*FLOORS, "deploy"])
def test_every_package_has_its_page(package: str) -> None:
    lines = (ROOT / package / "README.md").read_text().splitlines()
    assert 5 < len(lines) <= 80, (
        f"{package}/README.md has {len(lines)} lines; it is one page that holds the mental model"
    )
