"""Files are found one by one in the order of their sorted paths, links included, and a large folder gives what a small
one gives."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.reading import walk as file_walk
from cardialign.data_shards.reading.walk import NotSeen, find_files

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


class FailsAt:
    """`os.scandir` that fails in one folder after so many entries; as root, permissions stop nobody."""

    def __init__(self, folder: Path, after: int) -> None:
        self._folder, self._after, self._scandir = folder, after, os.scandir

    def __call__(self, path: Path) -> Any:
        return contextlib.nullcontext(self._some()) if Path(path) == self._folder else self._scandir(path)

    def _some(self) -> Iterator[os.DirEntry[str]]:
        yield from sorted(self._scandir(self._folder), key=lambda entry: entry.name)[: self._after]
        raise OSError(errno.ESTALE, "Stale file handle")


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def seen(root: Path, suffixes: tuple[str, ...] = (".hea",)) -> tuple[list[str], list[tuple[str, str]]]:
    missed: list[NotSeen] = []
    found = list(find_files(root, suffixes, not_seen=missed))
    return found, [(each.path, each.reason) for each in missed]


@pytest.mark.parametrize(("after", "found"), [(0, []), (1, ["b/1.hea"])])
def test_a_folder_that_cannot_be_listed_is_told_and_what_it_gave_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, found: list[str]
) -> None:
    tree(tmp_path, "a/1.hea", "b/1.hea", "b/2.hea", "c/1.hea")
    monkeypatch.setattr(os, "scandir", FailsAt(tmp_path / "b", after))
    assert seen(tmp_path) == (["a/1.hea", *found, "c/1.hea"], [("b", "unreadable-folder")])


def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.hea", "b/1.hea")
    (tmp_path / "b").chmod(0)
    try:
        code = (
            "import sys\nfrom pathlib import Path\nfrom cardialign.data_shards.reading.walk import find_files\n"
            "missed = []\nprint(list(find_files(Path(sys.argv[1]), ('.hea',), None, missed)), missed)\n"
        )
        drop: list[str] = []
        if os.geteuid() == 0:  # root reads everything unless it gives that right up
            if shutil.which("setpriv") is None:
                pytest.skip("root without setpriv")
            rights = "-dac_override,-dac_read_search"
            drop = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
        done = subprocess.run([*drop, sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert "['a/1.hea'] [NotSeen(path='b', reason='unreadable-folder'" in done.stdout, done.stderr
    finally:
        (tmp_path / "b").chmod(0o755)


def test_links_that_lead_nowhere_or_back_take_no_other_record_with_them(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.hea", "z.hea")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "unmounted").symlink_to("/no/such/disk")
    (tmp_path / "a" / "up").symlink_to("..", target_is_directory=True)
    found, missed = seen(tmp_path)
    assert found == ["a/1.hea", "z.hea"]
    assert sorted(missed) == [("a/up", "link-loop"), ("itself", "broken-link"), ("unmounted", "broken-link")]


def test_what_is_no_file_or_has_another_suffix_is_told_and_never_opened(tmp_path: Path) -> None:
    tree(tmp_path, "a.hea", "B.HEA", "c.dat")
    os.mkfifo(tmp_path / "pipe.hea")
    (tmp_path / "link.hea").symlink_to("pipe.hea")
    (tmp_path / "device.hea").symlink_to("/dev/zero")
    found, missed = seen(tmp_path)
    assert found == ["a.hea"]
    assert sorted(missed) == [
        ("B.HEA", "other-case"), ("device.hea", "not-a-file"), ("link.hea", "not-a-file"), ("pipe.hea", "not-a-file"),
    ]  # fmt: skip


def test_a_link_to_a_record_that_is_gone_stays_a_record_to_be_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "gone.hea").symlink_to("nowhere.hea")
    assert seen(tmp_path) == (["gone.hea"], [])


def test_a_root_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert seen(tmp_path / "none") == ([], [("", "unreadable-folder")])
