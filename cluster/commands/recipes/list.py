"""`cardialign recipes list`: the recipes there are, and how large each one is."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import amount
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="*", help="names of shipped recipes or YAML files (default: every shipped recipe)"
    )
    parser.add_argument(
        "--sampling-rate", type=amount, default=500.0, metavar="HZ", help="of the records (default 500)"
    )
    parser.add_argument("--seconds", type=amount, default=10.0, metavar="S", help="per record (default 10)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.record import SignalSpec
    from cardialign.pretrain.benchmarks.counts import FLOP_RULE, count_recipe
    from cardialign.pretrain.config import load_config, recipe_names

    spec = SignalSpec(args.sampling_rate, args.seconds)
    if spec.samples < 1:
        raise UsageError(
            f"records of {args.seconds:g} s at {args.sampling_rate:g} Hz have no sample",
            "give --sampling-rate and --seconds further above 0",
        )
    counted = [count_recipe(load_config(name), spec)._asdict() for name in args.recipe or recipe_names()]
    return {
        "sampling_rate": spec.sampling_rate,
        "record_seconds": spec.seconds,
        "flop_rule": FLOP_RULE,
        "recipes": counted,
    }


def _millions(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters / 1e6:.2f} M"


def summary(result: dict[str, Any]) -> list[str]:
    head = ("recipe", "method", "encoder", "ECG encoder", "all that trains", "GFLOP per record")
    rows = [head] + [
        (
            counts["name"],
            counts["method"],
            counts["encoder"],
            _millions(counts["encoder_parameters"]),
            _millions(counts["trained_parameters"]),
            f"{counts['forward_flop'] / 1e9:.2f}",
        )
        for counts in result["recipes"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        figures = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(words + figures))
    rate, seconds = result["sampling_rate"], result["record_seconds"]
    lines += ["", f"parameters; forward pass of one record of {seconds:g} s at {rate:g} Hz ({result['flop_rule']})"]
    notes = dict.fromkeys(counts["note"] for counts in result["recipes"] if counts["note"])
    return lines + [f"?: {note}" for note in notes]
