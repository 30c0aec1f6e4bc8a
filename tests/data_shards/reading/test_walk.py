"""Files are found one by one in the order of their sorted paths, links included, and a large folder gives what a small
one gives."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.reading import walk as file_walk
from cardialign.data_shards.reading.walk import find_files

SUFFIXES = (".hea", ".npy")


def all_at_once(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The plain reference: walk everything, then sort.

    Names the first of the paths that lead to a folder, as the walk in order does.
    """
    found: dict[str, str] = {}

    def visit(folder: str, above: frozenset[str]) -> None:
        real = os.path.realpath(root / folder)
        for name in os.listdir(root / folder):
            if name.startswith("."):
                continue
            path = folder + name
            if (root / path).is_dir():
                if os.path.realpath(root / path) not in above | {real}:
                    visit(f"{path}/", above | {real})
            elif name.endswith(suffixes):
                file = f"{real}/{name}"
                found[file] = min(found.get(file, path), path)

    visit("", frozenset())
    return sorted(found.values())


names = st.sampled_from(["a", "a.b", "a-", "a_", "B", "é", "\U0001f600", ".hidden", "z"])
trees = st.lists(
    st.tuples(st.lists(names, min_size=1, max_size=4), st.sampled_from([".hea", ".npy", ".dat", ""])), max_size=12
)
links = st.lists(st.tuples(st.lists(names, max_size=2), names, st.lists(names, max_size=2)), max_size=3)


@settings(max_examples=60, deadline=None)
@given(trees, links, st.booleans())
def test_the_order_is_that_of_all_paths_sorted(
    tmp_path_factory: pytest.TempPathFactory, tree, linked, packed: bool
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts, suffix in tree:
        file = root.joinpath(*parts[:-1], f"file-{parts[-1]}{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for where, name, target in linked:
        link = root.joinpath(*where, f"link-{name}")
        if link.parent.is_dir() and not link.is_symlink():
            link.symlink_to(root.joinpath(*target), target_is_directory=True)
    before, file_walk.PACKED_FROM = file_walk.PACKED_FROM, 2 if packed else 1000
    try:
        assert list(find_files(root, SUFFIXES)) == all_at_once(root)
    finally:
        file_walk.PACKED_FROM = before


def test_what_a_folder_leaves_out_is_left_out_there_alone(tmp_path: Path) -> None:
    for path in ("a.hea", "b.hea", "sub/a.hea", "sub/c.hea"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    asked = {}

    def leave_out(folder: str, files: Iterable[str]) -> set[str]:
        asked[folder] = list(files)
        return {"a.hea"} if folder else set()

    assert list(find_files(tmp_path, (".hea",), leave_out)) == ["a.hea", "b.hea", "sub/c.hea"]
    assert asked == {"": ["a.hea", "b.hea"], "sub/": ["a.hea", "c.hea"]}


def test_names_that_are_no_utf_8_and_folders_that_are_not_there(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.hea")).touch()
    assert [os.fsencode(path) for path in find_files(tmp_path, (".hea",))] == [b"\xff.hea"]
    assert list(find_files(tmp_path / "none", (".hea",))) == []
