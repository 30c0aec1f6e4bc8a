"""What of this package travels to a cluster: its modules and its data files, and nothing else that lies among them.

A checkout also holds a history, environments, sets and secrets; none of them is reached from here: only files of known
kinds below the package's own four folders are listed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cardialign.cluster.environment.versions import source_root

KINDS = frozenset({".py", ".yaml", ".css", ".html", ".md", ".typed"})
"""Suffixes of what a wheel of this package holds."""
_SINCE = (1980, 1, 1, 0, 0, 0)
"""Date of every entry of a package: the same files are the same bytes, and travel once."""


def package_files() -> dict[str, Path]:
    """Name in the upload (`cardialign/cluster/main.py`) -> file, sorted by name."""
    package = source_root() / "cardialign"
    found: dict[str, Path] = {}
    todo = [package]
    while todo:
        for path in todo.pop().iterdir():
            if path.name.startswith((".", "__pycache__")):
                continue
            if path.is_dir():
                todo.append(path)
            elif path.suffix in KINDS or path.name == "py.typed":
                found[str(Path("cardialign") / path.relative_to(package))] = path
    return dict(sorted(found.items()))


@contextlib.contextmanager
def package_folder() -> Iterator[Path]:
    """A copy of the package's files alone, in a folder that is gone afterwards: for an upload by Ray itself."""
    with tempfile.TemporaryDirectory(prefix="cardialign-") as folder:
        for name, path in package_files().items():
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield Path(folder) / "cardialign"


def archive(files: Mapping[str, Path]) -> tuple[str, bytes]:
    """(name, bytes) of `files` as Ray stores a package; the name holds the digest of the bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _SINCE)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content
