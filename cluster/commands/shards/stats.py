"""`cardialign shards stats`: what is in a shard set, as figures and as a page with histograms."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import page_to_write, place, whole_number
from cardialign.cluster.cli.progress import Progress
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder or URL of the shard set")
    parser.add_argument("--out", type=page_to_write, help="page to write (.html)")
    parser.add_argument(
        "--sample",
        type=whole_number(1),
        default=5000,
        metavar="N",
        help="records to read for lengths and rates (default 5000)",
    )
    parser.add_argument(
        "--top",
        type=whole_number(0),
        default=50,
        metavar="N",
        help="most frequent statements and reports to list (default 50)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.pages.code_names import add_names
    from cardialign.data_shards.checks.statistics import set_statistics
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    for name in ("sample", "top"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}; it must be at least 1", f"set --{name} to 1 or more")
    with Progress("shards stats") as progress:
        figures = set_statistics(ShardSet.open(args.shards), sample=args.sample, top=args.top, progress=progress)
    add_names(figures)
    page = None
    if args.out is not None:
        from cardialign.cluster.pages.set_page import write_set_page

        page = str(write_set_page(args.out, figures))
    return {**figures, "page": page}


def figures_of_records(result: dict[str, Any]) -> dict[str, Any]:
    """The lines that say how long the records are, what they are called, and whose they are."""
    reports, ages = result["reports"], result["age_years"]
    shown: dict[str, Any] = {
        "sampling rate": {f"{rate} Hz": count for rate, count in result["original_sampling_rate"].items()}
    }
    shown["valid seconds"] = {name: result["valid_seconds"][name] for name in ("least", "median", "padded_records")}
    shown["reports"] = {name: reports[name] for name in ("with", "without", "distinct", "distinct_statements")}
    shown["statements"] = dict(list(reports["statements"].items())[:5])
    for name, labels in result["labels"].items():
        names = labels.get("names", {})
        first = list(labels["codes"].items())[:8]
        shown[f"labels {name}"] = {f"{code} ({names[code]})" if code in names else code: n for code, n in first}
        if labels["unknown"]:
            shown[f"codes not in {name}"] = labels["unknown"]
        if labels["undecided"]:
            shown[f"left open in {name}"] = labels["undecided"]
        if labels["outdated"]:
            shown[f"outdated in {name}"] = {**labels["outdated"], "remedy": "build the set again"}
    shown["age"] = {name: ages[name] for name in ("known", "median", "p05", "p95") if name in ages}
    return {**shown, "sex": result["sex"]}


def summary(result: dict[str, Any]) -> list[str]:
    shown: dict[str, Any] = {
        name: result[name] for name in ("source", "records", "patients", "shards", "bytes", "rejected")
    }
    shown |= figures_of_records(result)
    return aligned(shown | {"quality": result["quality"], "page": result["page"]})
