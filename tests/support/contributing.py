"""What CONTRIBUTING.md says to write and to run, taken from the page itself."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"# (\S+/\S+\.\w+)\n")


@dataclass
class Recipe:
    """One section of the page.

    files     path -> text: blocks that begin with the path of a file.
    rows      (file, table, row): the other Python blocks, each a row of the table that its step names.
    commands  the shell blocks, in order.
    """

    files: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def write(self, tree: Path) -> None:
        """Write the files, and enter the rows first in their tables."""
        for name, text in self.files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        for name, table, row in self.rows:
            lines = (tree / name).read_text().split("\n")
            start = next(n for n, line in enumerate(lines) if re.match(rf"{table}\b", line))
            first = next(n for n, line in enumerate(lines) if n >= start and line.endswith("{")) + 1
            indent = len(lines[first]) - len(lines[first].lstrip())
            lines[first:first] = textwrap.indent(row, " " * indent).split("\n")
            (tree / name).write_text("\n".join(lines))


def recipe(heading: str) -> Recipe:
    """The section whose heading is given."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = Recipe()
    end = 0
    for block in BLOCK.finditer(section):
        step, end = section[end : block.start()], block.end()
        code = textwrap.dedent(block[2])
        path = PATH.match(code)
        if path is not None:
            found.files[path[1]] = code[path.end() :]
        elif block[1] == "sh":
            found.commands.append(code)
        else:
            names = re.findall(r"`([\w/]+\.py)`", step), re.findall(r"`([A-Z]+)`", step)
            found.rows.append((names[0][0], names[1][0], code.rstrip()))
    return found
