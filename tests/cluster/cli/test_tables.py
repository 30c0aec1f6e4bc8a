"""Tables are drawn for a terminal and lose nothing; what is piped stays Markdown."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from cardialign.cluster.cli.tables import drawn

TABLE = [
    "before",
    "| | probe (95 %) | CPU s |",
    "|---|---|---|",
    "| merl | 0.786 (0.751-0.817) | 41 |",
    "| *untrained* | 0.861 (0.829-0.887) | 2 |",
    "",
    "- probe: the reference is ahead of merl",
]
CELLS = ["merl", "0.786", "(0.751-0.817)", "41", "*untrained*", "0.861", "(0.829-0.887)", "2"]


@pytest.mark.parametrize("width", [120, 60, 46, 30])
def test_a_table_fits_the_terminal_and_every_cell_is_there(width: int) -> None:
    lines = drawn(TABLE, width)
    assert lines[0] == "before" and lines[-1] == "- probe: the reference is ahead of merl"
    assert [word for line in lines[:-1] for word in line.split() if word in CELLS] == CELLS
    assert not any("|" in line or "---" in line for line in lines)
    if width >= 46:
        assert max(map(len, lines)) <= width
        row = next(line for line in lines if "merl" in line)
        assert "0.786 (0.751-0.817)" in row and "41" in row, "side by side"


def test_whatever_the_width_no_word_is_cut_and_no_line_is_longer() -> None:
    """Long and short columns; where the words have no room side by side, they stand below each other."""
    rows = [
        ["row", "what it is in words", "figure (95 %)", "n"],
        ["a", "of several words in a cell", "0.7 (0.6-0.8)", "9"],
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    wanted = [word for row in rows for cell in row for word in cell.split()]
    for width in range(30, 90):
        shown = drawn([lines[0], "|---|---|---|---|", lines[1]], width)
        if any("\u2500\u2500" in line for line in shown):
            assert max(map(len, shown)) <= width
            assert sorted(" ".join(shown).replace("\u2500", "").split()) == sorted(wanted)
        else:
            assert shown[0] == "a" and width < 45


def test_words_from_outside_neither_colour_nor_move_anything() -> None:
    lines = drawn(["| a | b |", "|---|---|", "| [red]x[/red] | :smile: |", "| \x1b[31mred | \x1b]0;t\x07 |"], 80)
    text = "\n".join(lines)
    assert "[red]x[/red]" in text and ":smile:" in text and "\x1b" not in text and "\x07" not in text


def test_rows_that_are_not_of_the_table_lose_nothing() -> None:
    text = "\n".join(drawn(["| a | b |", "|---|---|", "| 1 | 2 | 3 |", "| only |", "| not | a table"], 80))
    assert all(word in text for word in ("1", "2", "3", "only", "not", "a table"))
    assert drawn(["| no rule below |", "| so no table |"], 80) == ["| no rule below |", "| so no table |"]


SAID = f"from cardialign.cluster.cli.tables import say_result; say_result({TABLE!r})"


def test_a_pipe_gets_markdown_and_a_terminal_a_drawing() -> None:
    piped = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, check=True).stdout
    assert piped.splitlines() == TABLE
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminals on this machine")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", SAID], stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # the other end has gone
        pass
    assert process.wait(60) == 0
    text = seen.decode()
    assert "|---|" not in text and "\x1b[1m" in text and "0.786 (0.751-0.817)" in text
