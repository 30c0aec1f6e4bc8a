"""`make pages`: the pages of the site that follow from the code, so that they cannot say something else.

They are committed: the site is readable as plain Markdown. `tests/deploy/test_site.py` fails while one is out of date.

    python -m deploy.site.write_pages
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from deploy.site.reference import commands, configuration, formats, names

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
        text, file = written(), DOCS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)
            sys.stdout.write(f"written: {file.relative_to(DOCS.parents[2])}\n")


if __name__ == "__main__":
    main()
