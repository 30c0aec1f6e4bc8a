"""Tables in LaTeX with booktabs: every word of others is escaped, so that it is printed and never run."""

from __future__ import annotations

from collections.abc import Sequence

from cardialign.cluster.comparison.tables import Cell, Row, Table
from cardialign.data_shards.shown import shown

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedblright{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "±": r"$\pm$", "−": r"$-$",
    "–": "--", "…": r"\ldots{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
MOST_ROWS = 30
NO_WIDER = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
HEAD = (
    "% Written by cardialign compare. Needs \\usepackage{booktabs}, {graphicx} and {textcomp}.\n"
    "% A dagger marks published figures: other records, splits and prompts than the others.\n"
)


def latex_of(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """One `table` each, and what is said under them."""
    pieces = [piece for table in tables for piece in _pieces(table)]
    return HEAD + "\n".join(_table(each, notes if k == 0 else ()) for k, each in enumerate(pieces))


def _pieces(table: Table) -> list[Table]:
    """A table that is longer than a page, block by block."""
    if sum(len(rows) for _, rows in table.blocks) <= MOST_ROWS:
        return [table]
    return [
        Table(f"{table.title}, {heading}" if heading else table.title, table.heads, (("", rows),), table.notes)
        for heading, rows in table.blocks
    ]


def escaped(text: str) -> str:
    """Text of others as LaTeX prints it; nothing in it is a command, and a line of it stays one."""
    return "".join(ESCAPES.get(each, each) for each in shown(text))


def _table(table: Table, notes: Sequence[str]) -> str:
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escaped(table.title)}}}\vspace{{4pt}}",
        NO_WIDER,
        rf"\begin{{tabular}}{{l{'r' * len(table.heads)}}}",
        r"\toprule",
        " & ".join(["", *map(escaped, table.heads)]) + r" \\",
    ]
    for heading, rows in table.blocks:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(table.heads) + 1}}}{{l}}{{\emph{{{escaped(heading)}}}}} \\")
        lines += [line for row in rows for line in _rows(row)]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\footnotesize {escaped(note)}" for note in [*table.notes, *notes]]
    return "\n".join([*lines, r"\end{table}", ""])


def _rows(row: Row) -> list[str]:
    """A line of figures, and where they have intervals a line of these: beside each other they would be too wide."""
    name = escaped(row.name) + (r"\textsuperscript{\textdagger}" if row.kind == "published" else "")
    figures = " & ".join([rf"\textit{{{name}}}" if row.kind == "floor" else name, *map(_cell, row.cells)])
    if not any(cell.below for cell in row.cells):
        return [figures + r" \\"]
    below = [rf"{{\scriptsize {escaped(cell.below)}}}" if cell.below else "" for cell in row.cells]
    return [figures + r" \\*[-2pt]", " & ".join(["", *below]) + r" \\"]


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.best:
        text = rf"\textbf{{{text}}}"
    return text + (rf"\textsuperscript{{{escaped(cell.mark)}}}" if cell.mark else "")
