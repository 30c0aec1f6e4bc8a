"""Markdown out of docstrings, and tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- Written by `make pages`. Change the docstring, the field or the option that it comes from. -->"


def page(title: str, *parts: str) -> str:
    """A generated page: title, the note that it is one, and its parts."""
    return "\n\n".join([f"# {title}", NOTE, *filter(None, parts)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(each) for each in line) + " |" for line in lines)


def cell(text: str) -> str:
    """Text of one line, in which a bar is no border."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def prose(docstring: str | None, keys: Iterable[str] = ()) -> str:
    """A docstring as Markdown: what is set in by four columns is shown as it stands, as is what is aligned by hand.

    Lines such as "width, depth: of a layer" become items of a list where all these words are `keys`.
    """
    known = set(keys)
    blocks: list[list[str]] = [[]]
    for line in inspect.cleandoc(docstring or "").splitlines():
        if not line.strip():
            blocks.append([])
            continue
        shown = line.startswith("    ")
        if blocks[-1] and blocks[-1][-1].startswith("    ") != shown:
            blocks.append([])
        blocks[-1].append(line)
    return "\n\n".join(_block(lines, known) for lines in blocks if lines)


def _block(lines: list[str], keys: set[str]) -> str:
    shown = lines[0].startswith("    ") or sum(bool(re.match(r"\w+   +\S", line)) for line in lines) > 1
    if not shown:
        return "\n".join(_listed([re.sub(r"[*<]", lambda found: "\\" + found[0], line) for line in lines], keys))
    return "\n".join(["```text", inspect.cleandoc("\n".join(["", *lines])), "```"])


def _listed(lines: list[str], keys: set[str]) -> list[str]:
    """Lines of prose; each that explains keys as an item, with what follows it."""
    found: list[str] = []
    for line in lines:
        words, colon, rest = line.partition(": ")
        named = re.split(r", | and ", words) if colon else []
        if named and set(named) <= keys:
            if not any(each.startswith("- ") for each in found):
                found += [""] if found else []
            found.append(f"- {', '.join(f'`{name}`' for name in named)}: {rest}")
        elif found and any(each.startswith("- ") for each in found):
            found.append(f"  {line}")
        else:
            found.append(line)
    return found


def first_sentence(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())
