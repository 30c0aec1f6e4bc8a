"""Packages of other people, as pip leaves them behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.plugins import Table


def install(folder: Path, package: str, code: str, points: dict[str, str], group: str) -> None:
    """What pip leaves behind: a module and a dist-info folder with its entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")


def see(folder: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of ours has the packages of `folder` too, until the test ends."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(vars(table), "plugins", Table(table.kind, table.own, aliases=table.aliases).plugins)
