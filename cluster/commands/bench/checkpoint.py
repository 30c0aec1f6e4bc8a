"""`cardialign bench checkpoint`: for how long a checkpoint holds up the steps, in the step and behind them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import place, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="cardialign-small", help="whose checkpoints (default cardialign-small)")
    parser.add_argument(
        "--out", type=place, default=Path("."), metavar="DIR", help="a folder on the disk to measure (default: here)"
    )
    parser.add_argument("--rounds", type=whole_number(1, 1000), default=5, metavar="N", help="of each way (default 5)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a value of the recipe; text.encoder=minilm where the recipe's encoder is not on this machine",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.benchmarks.checkpoint import measure_checkpoint

    return measure_checkpoint(args.recipe, args.out, overrides=args.set, rounds=args.rounds)


def summary(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['recipe']}, ZeRO {result['zero_stage']}, one worker on {result['device']}: "
        f"{result['bytes'] / 2**20:.0f} MiB a checkpoint"
    ]
    for way in ("step", "background"):
        seen = result[way]
        lines.append(
            f"{way:10s}  pause {1e3 * seen['pause_seconds']:8.1f} ms (slowest {1e3 * seen['slowest_seconds']:.1f}, "
            f"first {1e3 * seen['first_seconds']:.1f})  committed after {1e3 * seen['commit_seconds']:8.1f} ms"
        )
    return [*lines, f"a pause in the background is {100 * result['ratio']:.1f} % of one in the step"]
