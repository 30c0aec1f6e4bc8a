"""Markdown out of docstrings, and tables."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial

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
    return markdown(inspect.cleandoc(docstring or ""), keys)


def markdown(text: str, keys: Iterable[str] = ()) -> str:
    """The same of text whose margin is where it belongs."""
    known = set(keys)
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
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
        found = _listed([re.sub(r"[*<]", lambda found: "\\" + found[0], line) for line in lines], keys)
        return "\n".join(_wrapped(line) for line in found)
    return "\n".join(["```text", inspect.cleandoc("\n".join(["", *lines])), "```"])


def _wrapped(line: str) -> str:
    """A line that marks and ticks have made longer than a page is wide, as two."""
    after = "  " if line.startswith(("- ", "  ")) else ""
    fill = partial(textwrap.fill, width=120, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)
    return line if len(line) <= 120 else fill(line)


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
