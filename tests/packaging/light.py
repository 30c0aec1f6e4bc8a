"""An environment that holds the wheel, what it asks for under some extras, and nothing else of the one that runs this.

Nothing is fetched: the folders of installed packages are linked into a site-packages of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement

from tests.packaging.elsewhere import Environment

OURS = "cardialign"


def asked_by(wheel: Path) -> list[str]:
    """The requirements of a wheel, as its metadata says them."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


def closure(own: list[str], extras: Iterable[str] = (), more: Iterable[str] = ()) -> set[str]:
    """Names of the distributions that requirements of ours under these extras, and `more`, bring on this machine."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = {(OURS, extra) for extra in ("", *extras)} | {(name, "") for name in more}
    while todo := todo - seen:
        name, extra = todo.pop()
        seen.add((name, extra))
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wanted = own if name == OURS else importlib.metadata.requires(name) or []
            found.add(name)
            for each in map(Requirement, wanted):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    called = re.sub(r"[-_.]+", "-", each.name).lower()
                    todo |= {(called, one) for one in ("", *each.extras)}
    return found - {OURS}


def light_environment(wheel: Path, folder: Path, extras: Iterable[str] = (), more: Iterable[str] = ()) -> Environment:
    """A new environment in `folder` as `pip install "WHEEL[extras]"`, and of the packages `more`, would make it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in sorted(closure(asked_by(wheel), extras, more)):
        distribution = importlib.metadata.distribution(name)
        for top in sorted({path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}):
            link = site / top
            if not link.exists() and not top.endswith(".pth"):
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # what pip does with a wheel like ours, in a tenth of a second
    return Environment(folder)
