"""Finding record files below a folder, one by one, in one order on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

PACKED_FROM = 1 << 16
"""Names of one folder that are sorted as Python strings; more are kept as bytes, at their length and 12 bytes each."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".z", ".zip", ".7z")
_OTHER_FORMS = (".edf", ".bdf", ".gdf", ".dcm", ".scp", ".aecg", ".h5", ".hdf5")
"""Suffixes of files that hold recordings whatever the set; tables and texts may lie in any folder."""
LeaveOut = Callable[[str, Iterable[str]], Collection[str]]


@dataclass(frozen=True)
class NotSeen:
    """Something below a root that the walk could not look at.

    path: relative to the root. reason: unreadable-folder, broken-link, link-loop, not-a-file, other-case, packed or
    other-form. detail: in words.
    """

    path: str
    reason: str
    detail: str


def find_files(
    root: Path, suffixes: Sequence[str], leave_out: LeaveOut | None = None, not_seen: list[NotSeen] | None = None
) -> Iterator[str]:
    """Paths below `root`, with "/" whatever the system, of all files with one of the suffixes, in the order of the
    sorted paths; hidden files and folders left out, and a folder that links lead to twice is walked once.

    leave_out(folder, its files' names) -> the names to leave out; folder is "" for the root, else ends with "/". In
    memory are the names of the folders on the way to where the walk is, and one path per link to a folder.

    not_seen: gets what may hold records and could not be looked at: folders that cannot be listed, links that lead
    nowhere or back up, pipes and devices with a wanted name, suffixes in other letters (`.HEA`), wanted files that are
    packed (`.csv.gz`), and recordings of another form (`.edf`).
    """
    walk = _Walk(root, tuple(suffixes), leave_out, [] if not_seen is None else not_seen)
    yield from walk.below("", os.path.realpath(root))


class _Walk:
    def __init__(
        self, root: Path, suffixes: tuple[str, ...], leave_out: LeaveOut | None, not_seen: list[NotSeen]
    ) -> None:
        self._root, self._suffixes, self._leave_out, self._not_seen = root, suffixes, leave_out, not_seen
        self._packed = tuple(suffix + packed for suffix in suffixes for packed in _PACKED)
        self._real_root = os.path.realpath(root).rstrip("/")
        self._ways = {self._real_root or "/": ""}
        """Real folder -> where the walk came to it: the root, and each folder that a link was followed to."""

    def below(self, folder: str, real: str) -> Iterator[str]:
        """Files below `folder` ("" or ending with "/"), whose real path is `real`."""
        names = self._names(folder)
        out = (
            self._leave_out(folder, (name for name in names if not name.endswith("/")))
            if self._leave_out is not None
            else ()
        )
        for name in names:
            here = folder + name
            if not name.endswith("/"):
                if name not in out:
                    yield here
                continue
            linked = os.path.islink(self._root / here[:-1])
            there = os.path.realpath(self._root / here) if linked else f"{real.rstrip('/')}/{name[:-1]}"
            if linked and f"{real}/".startswith(f"{there.rstrip('/')}/"):
                self._miss(here[:-1], "link-loop", "a link back to a folder above it, which is walked there")
            if not self._been(there, here):
                if linked:
                    self._ways[there] = here
                yield from self.below(here, there)

    def _miss(self, path: str, reason: str, detail: str) -> None:
        self._not_seen.append(NotSeen(path, reason, detail))

    def _been(self, real: str, here: str) -> bool:
        """Whether the walk came to the folder `real` before it came `here`: along one of the ways, at a place that is
        earlier in the order."""
        if len(self._ways) == 1 and real == f"{self._real_root}/{here[:-1]}":
            return False
        above, inside = real, ""
        while True:
            way = self._ways.get(above)
            if way is not None and way + inside < here:
                return True
            parent, _, name = above.rpartition("/")
            if not name or name.startswith("."):
                return False
            above, inside = parent or "/", f"{name}/{inside}"

    def _names(self, folder: str) -> Iterable[str]:
        """Sorted names of the wanted files in a folder, and of its folders, which end with "/": that is the order of
        whole paths."""
        names: list[str] = []
        packed: list[pa.Array] = []
        try:
            with os.scandir(self._root / folder) as found:
                for each in found:
                    name = self._wanted(folder, each)
                    if name:
                        names.append(name)
                    if len(names) == PACKED_FROM:
                        packed.append(_packed(names))
                        names = []
        except OSError as error:  # what was found before it stays
            self._miss(folder.rstrip("/"), "unreadable-folder", f"cannot be listed: {_words(error)}")
        return _PackedNames(pa.concat_arrays([*packed, _packed(names)])) if packed else sorted(names)

    def _wanted(self, folder: str, each: os.DirEntry[str]) -> str:
        """The name of a wanted file, that of a folder with "/" at its end, or ""."""
        name = each.name
        if name.startswith("."):
            return ""
        try:
            if each.is_dir():
                return f"{name}/"
            if name.endswith(self._suffixes):
                if each.is_file():
                    return name
                if not each.is_symlink() or os.path.exists(each.path):
                    self._miss(folder + name, "not-a-file", "a pipe, socket or device, no file")
                    return ""
                return name  # a link to nothing: its record is rejected by name when its turn comes
            if each.is_symlink() and not os.path.exists(each.path):
                self._miss(folder + name, "broken-link", f"a link to {os.readlink(each.path)!r}, which is not there")
            elif name.lower().endswith(self._suffixes):
                self._miss(folder + name, "other-case", f"not read: its suffix is not {_either(self._suffixes)}")
            elif name.lower().endswith(self._packed):
                self._miss(folder + name, "packed", "not read: unpack it")
            elif name.lower().endswith(_OTHER_FORMS):
                self._miss(folder + name, "other-form", "not read: a recording of another form than the set's")
        except OSError as error:
            self._miss(folder + name, "broken-link", f"cannot be looked at: {_words(error)}")
        return ""


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _either(suffixes: Sequence[str]) -> str:
    return " or ".join(suffixes)


def _packed(names: list[str]) -> pa.Array:
    return pa.array([os.fsencode(name) for name in names], pa.large_binary())


class _PackedNames:
    """Many names as bytes, walked in sorted order: that of UTF-8 bytes is that of the characters."""

    def __init__(self, names: pa.Array) -> None:
        self._names, self._order = names, pc.sort_indices(names)

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self._order), 4096):
            yield from map(os.fsdecode, self._names.take(self._order.slice(at, 4096)).to_pylist())
