"""Results on a terminal: the Markdown tables among their lines are drawn for its width; elsewhere lines stay as they
are."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import zip_longest
from typing import TYPE_CHECKING

from cardialign.cluster.cli.streams import say
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_RULE = re.compile(r"\|(?:\s*:?-{3,}:?\s*\|)+")
_GAP = 3


def say_result(lines: Iterable[str]) -> None:
    """To stdout, drawn where that is a terminal."""
    if not getattr(sys.stdout, "isatty", lambda: False)() or importlib.util.find_spec("rich") is None:
        say(lines)
        return
    from rich.console import Console

    _draw(list(lines), Console(markup=False, emoji=False, highlight=False, soft_wrap=True))


def drawn(lines: Sequence[str], width: int) -> list[str]:
    """What a terminal of so many columns shows, without its colours."""
    from rich.console import Console

    out = StringIO()
    _draw(lines, Console(file=out, width=width, markup=False, emoji=False, highlight=False, color_system=None))
    return out.getvalue().splitlines()


def _draw(lines: Sequence[str], console: Console) -> None:
    for part in _parts(lines):
        if isinstance(part, str):
            console.print(shown(part), soft_wrap=True)
        else:
            console.print(*_table(part, console.width), sep="\n", soft_wrap=False)


def _parts(lines: Sequence[str]) -> Iterator[str | list[list[str]]]:
    """Lines, and tables as rows of cells, the head first."""
    at = 0
    while at < len(lines):
        if at + 1 < len(lines) and lines[at].startswith("|") and _RULE.fullmatch(lines[at + 1].strip()):
            last = at + 2
            while last < len(lines) and lines[last].startswith("|"):
                last += 1
            yield [_cells(line) for line in (lines[at], *lines[at + 2 : last])]
            at = last
        else:
            yield lines[at]
            at += 1


def _cells(line: str) -> list[str]:
    return [shown(cell.strip()) for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _table(rows: list[list[str]], width: int) -> list[RenderableType]:
    """Side by side where every word has room, else row by row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    head, *body = rows
    widths = _widths(rows, width - _GAP * len(head)) if all(len(row) == len(head) for row in body) else None
    if widths is None:
        return [line for row in body for line in _one_by_one(head, row)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False, show_edge=False)
    for name, room in zip(head, widths, strict=True):
        table.add_column(Text(name), overflow="fold", width=room)
    for row in body:
        table.add_row(*map(Text, row))
    return [table]


def _widths(rows: list[list[str]], room: int) -> list[int] | None:
    """Of each column, together at most `room`: first its longest word, then more where its longest cell has most lines;
    None where not every word has room."""
    columns = list(zip(*rows, strict=True))
    least = [max((len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    whole = [max(map(len, column), default=1) for column in columns]
    if sum(least) > room:
        return None
    widths = list(least)
    for _ in range(room - sum(least)):
        short = [at for at, has in enumerate(widths) if has < whole[at]]
        if not short:
            break
        widths[max(short, key=lambda at: whole[at] / widths[at])] += 1
    return widths


def _one_by_one(head: Sequence[str], row: Sequence[str]) -> Iterator[RenderableType]:
    """The first cell as a title, and each other one behind the head of its column."""
    from rich.text import Text

    yield Text(row[0], style="bold")
    longest = max(map(len, head))
    for name, cell in zip_longest(head[1 : len(row)], row[1:], fillvalue=""):
        yield Text(f"  {name:<{longest}}  {cell}")
