"""What mkdocs asks while it builds: the pages of the repository that the site's pages link to are pages of it too.

`docs/` is read on its own as plain Markdown, with links to files of the repository. In the site a link to a Markdown
file of the repository leads to its page under `repository/`; one to any other file becomes its path in words.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = Path(__file__).resolve().parent / "docs"
FOLDER = "repository"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
FLOORS = ("cluster", "pretrain", "data_shards", "kernels", "deploy")


def repository_pages() -> list[Path]:
    """The Markdown files of the repository that are not in `docs/`."""
    found = [*ROOT.glob("*.md"), *(page for floor in FLOORS for page in (ROOT / floor).rglob("*.md"))]
    return sorted(page for page in found if not page.is_relative_to(DOCS))


def place_of(page: Path) -> str:
    """Where a file of the repository lies in the site."""
    return f"{FOLDER}/{page.relative_to(ROOT).as_posix()}"


def unfolded(entries: list[Any], docs: Path) -> list[Any]:
    """A navigation in which a folder (`methods/`) stands for its pages, the index first."""
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            found += [
                {title: unfolded(inner, docs) if isinstance(inner, list) else inner for title, inner in entry.items()}
            ]
        elif entry.endswith("/"):
            pages = sorted((docs / entry).glob("*.md"), key=lambda page: (page.stem != "index", page.stem))
            found += [f"{entry}{page.name}" for page in pages]
        else:
            found.append(entry)
    return found


def pages_of(entries: list[Any]) -> list[str]:
    """The pages that a navigation names."""
    found: list[str] = []
    for entry in entries:
        inner = list(entry.values()) if isinstance(entry, dict) else [entry]
        for each in inner:
            found += pages_of(each) if isinstance(each, list) else [each]
    return found


def places(text: str) -> set[str]:
    """The places on a page that a link may name: its headings, as GitHub and mkdocs both write them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in headings}


def redirected(text: str, source: Path, here: str, known: dict[Path, str]) -> str:
    """The Markdown of the page `source`, shown at `here`, with its links as the site has them.

    known: file -> its place in the site.
    """
    parts = FENCED.split(text)  # code blocks at odd places
    parts[::2] = [LINK.sub(lambda found: _link(found, source, here, known), part) for part in parts[::2]]
    return "".join(parts)


def _link(found: re.Match[str], source: Path, here: str, known: dict[Path, str]) -> str:
    file, mark, place = found[2].partition("#")
    if not file or "://" in found[2]:
        return found[0]
    target = Path(os.path.normpath(source.parent / file))
    target = target / "README.md" if target.is_dir() else target
    if target not in known:
        return f"{found[1]} (`{target.relative_to(ROOT)}`)" if target.is_relative_to(ROOT) else found[1]
    return f"[{found[1]}]({os.path.relpath(known[target], PurePosixPath(here).parent)}{mark}{place})"


def on_config(config: Any) -> Any:
    config.nav = unfolded(config.nav, DOCS)
    return config


def on_files(files: Any, config: Any) -> Any:
    """The repository's pages, as files of the site that stand in no navigation."""
    from mkdocs.structure.files import File, InclusionLevel

    for page in repository_pages():
        added = File.generated(config, place_of(page), abs_src_path=str(page))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    known = {Path(each.abs_src_path): each.src_uri for each in files if each.abs_src_path}
    return redirected(markdown, Path(page.file.abs_src_path), page.file.src_uri, known)
