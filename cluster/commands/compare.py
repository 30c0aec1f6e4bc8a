"""`cardialign compare`: runs, encoders, evaluations and studies side by side, as a page, LaTeX and tables of commas."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import place_to_write, whole_number
from cardialign.cluster.cli.result_file import check_place, named_out, write_rows
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cardialign.cluster.comparison.compare import Comparison
    from cardialign.cluster.comparison.methods import Method
    from cardialign.cluster.comparison.sources import Source
    from cardialign.cluster.pages.compare_page import Material

PAGE, LATEX, FIGURES, DIFFERENCES, COSTS = (
    "compare.html", "tables.tex", "figures.csv", "differences.csv", "costs.csv",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        nargs="*",
        metavar="RUN",
        help="run directory, exported encoder, result of `evaluate ... --out`, grid, study, or a folder of these; "
        "NAME=RUN gives it a name. A result belongs to the run whose encoder it is of; runs that differ in their seed "
        "alone are one method",
    )
    parser.add_argument(
        "--out",
        type=place_to_write,
        required=True,
        metavar="FOLDER",
        help=f"for {PAGE} (one file, no network), {LATEX} (booktabs), {FIGURES}, {DIFFERENCES}, {COSTS}",
    )
    parser.add_argument("--reference", metavar="NAME", help="of many methods, less whom they are shown (the first)")
    parser.add_argument(
        "--bootstrap", type=whole_number(2), default=1000, metavar="N", help="resamples by patient (default 1000)"
    )
    parser.add_argument(
        "--price", action="append", default=[], metavar="[KIND=]AMOUNT", help="of one device (CPU: core) for one hour"
    )
    parser.add_argument("--currency", default="", metavar="WORD", help="of --price, a word that is printed")
    parser.add_argument("--no-published", action="store_true", help="leave the published rows out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.comparison.compare import compare
    from cardialign.cluster.comparison.costs import check_prices, prices_of
    from cardialign.cluster.comparison.methods import methods_of
    from cardialign.cluster.comparison.sources import named, read_sources

    if not args.places:
        raise UsageError("nothing to compare was named", "name runs, encoders, results or studies: compare RUN RUN")
    prices = prices_of(args.price)
    if args.out.is_file():
        raise UsageError(f"--out {args.out} is a file", "name a folder")
    check_place(args.out / PAGE)
    sources, passed = read_sources([named(text) for text in args.places])
    methods = methods_of(sources)
    check_prices(prices, [member for method in methods for member in method.members])
    reference = _reference(args.reference, methods)
    with Progress("compare") as progress:
        found = compare(methods, args.bootstrap, progress)
    return _written(args, found, prices, reference, [*passed, *_without(methods)])


def _reference(asked: str | None, methods: Sequence[Method]) -> str:
    names = [method.name for method in methods]
    if asked is not None and asked not in names:
        raise UsageError(f"--reference {asked} is no method here", f"they are {', '.join(names)}")
    return asked or names[0]


def _without(methods: Sequence[Method]) -> list[str]:
    """Runs and encoders that no figure is of."""
    members = [member for method in methods for member in method.members]
    owner = {digest: each.name for each in reversed(members) if each.figures for digest in each.source.digests}
    notes = []
    for each in members:
        same = next((owner[digest] for digest in each.source.digests if digest in owner), None)
        if not each.figures and same is not None:
            notes.append(f"{each.name} is the same encoder as {same}, which its evaluations stand under")
        elif not each.figures:
            notes.append(f"{each.name} has no evaluation here: {_way_to_one(each.source)}")
    return notes


def _way_to_one(source: Source) -> str:
    place = source.path / "export" if source.what.startswith("run") else source.path
    first = "" if source.digests else f"`cardialign export {shlex.quote(str(source.path))}`, then "
    return f"{first}`cardialign evaluate ... --encoder {shlex.quote(str(place))} --out FILE`, and name FILE, too"


def _written(
    args: argparse.Namespace, found: Comparison, prices: dict[str, float], reference: str, notes: list[str]
) -> dict[str, Any]:
    from cardialign.cluster.comparison.costs import cost_rows, cost_table_rows, quality_column
    from cardialign.cluster.comparison.latex import latex_of
    from cardialign.cluster.comparison.tables import (
        difference_rows,
        figure_rows,
        marked_lines,
        pairs_table,
        quality_table,
    )
    from cardialign.cluster.pages.compare_page import Material, write_compare_page
    from cardialign.data_shards.files import commit_file

    quality = [quality_table(found, kind, not args.no_published) for kind in found.kinds]
    pairs, column = pairs_table(found, reference), quality_column(found)
    costs = cost_rows(found, prices, column)
    material = Material(found, quality, pairs, costs, column, _settings(found), notes, args.currency, _command(args))
    marks = [f"{mark}: {why}" for mark, why, _ in marked_lines(found)]
    rows = {FIGURES: figure_rows(found), DIFFERENCES: difference_rows(found)}
    rows[COSTS] = cost_table_rows(costs, args.currency)
    with named_out(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_compare_page(args.out / PAGE, material)
        text = latex_of([*quality, *([pairs] if pairs.blocks else [])], marks)
        commit_file(args.out / LATEX, lambda path: path.write_text(text, encoding="utf-8"), durable=False)
    for name, of in rows.items():
        if of:
            write_rows(args.out / name, of)
        else:
            (args.out / name).unlink(missing_ok=True)
    return {
        "methods": [method.name for method in found.methods],
        "figures": rows[FIGURES],
        "differences": rows[DIFFERENCES],
        "costs": rows[COSTS],
        "not_comparable": [f"{name}, {of}: {entry.marked}" for name, of, entry in found.marks()],
        "without_difference": found.unpaired,
        "notes": notes,
        "page": str(args.out / PAGE),
        "_lines": _lines(material),
    }


def _command(args: argparse.Namespace) -> str:
    """That makes the page again."""
    words = ["cardialign", "compare", *args.places]
    words += [word for price in args.price for word in ("--price", price)]
    for name, value in (("currency", args.currency), ("reference", args.reference)):
        words += [f"--{name}", value] if value else []
    words += ["--no-published"] if args.no_published else []
    return shlex.join([*words, "--bootstrap", str(args.bootstrap), "--out", str(args.out)])


def _settings(found: Comparison) -> list[tuple[str, Any]]:
    """The settings in which runs and encoders differ, then those of the variants of each study."""
    from cardialign.cluster.comparison.costs import settings_that_differ

    members = [member for method in found.methods if not method.floor for member in method.members]
    runs = {
        each.name: each.source.config for each in members if each.source.config and "variant" not in each.source.what
    }
    out = [("Settings in which the runs differ", settings_that_differ(runs))] if len(runs) > 1 else []
    studies: dict[str, dict[str, Any]] = {}
    for each in members:
        if each.source.what == "study variant" and each.source.config is not None:
            studies.setdefault(each.name.rpartition("/")[0], {})[each.name] = each.source.config
    for study, variants in studies.items():
        out.append((f"Settings of study {study}", settings_that_differ(variants, "as the recipe has it")))
    return out


def _lines(material: Material) -> list[str]:
    """For a terminal: every column with its methods, and what is not comparable."""
    from cardialign.cluster.comparison.tables import interval, points

    found, lines = material.found, []
    for column in found.columns:
        lines.append(f"{column}")
        for method in found.methods:
            for entry in found.entries.get((method.name, column), []):
                spread = "" if entry.sd is None else f" ± {100 * entry.sd:.2f} over {entry.seeds}"
                limits = f" ({interval(entry.low, entry.high)})" if entry.low is not None else ""
                said = f"  NOT COMPARABLE: {entry.marked}" if entry.marked else ""
                lines.append(f"  {points(entry.value)}{spread}{limits}  {method.name}{said}")
    lines += [*material.notes, *found.unpaired]
    return lines


def summary(result: dict[str, Any]) -> list[str]:
    return [*result["_lines"], f"page: {result['page']}; beside it {LATEX}, {FIGURES}, {DIFFERENCES}, {COSTS}"]
