"""`make pages`: the pages of the site that follow from the code, so that they cannot say something else.

They are committed: the site is readable as plain Markdown. `tests/deploy/test_site.py` fails while one is out of date.

    python -m deploy.site.write_pages
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cardialign.pretrain.choices import METHODS
from deploy.site.reference import commands, configuration, drafts, formats, names

DOCS = Path(__file__).parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration.configuration,
    "reference/commands.md": commands.commands,
    "reference/formats.md": formats.formats,
    "reference/exit-codes.md": commands.exit_codes,
    "reference/python.md": names.python,
    "methods/index.md": names.methods,
}
"""Page below `docs/` -> what writes it."""


def main() -> None:
    for name, written in PAGES.items():
        _write(DOCS / name, written())
    for method in configuration.own(METHODS):
        file = DOCS / "methods" / f"{method}.md"
        if not file.is_file():
            _write(file, drafts.draft(method), "a draft from its docstring, yours from now on")


def _write(file: Path, text: str, remark: str = "") -> None:
    """Write a page where it says something else, and say so."""
    if not file.is_file() or file.read_text() != text:
        file.write_text(text)
        sys.stdout.write(f"written: {file.relative_to(DOCS.parents[2])}{': ' * bool(remark)}{remark}\n")


if __name__ == "__main__":
    main()
