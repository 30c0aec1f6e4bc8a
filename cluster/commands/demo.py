"""`cardialign demo`: the whole path on virtual patients, from the cohort to the registry, with a page at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import add_workers, place_to_write, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=place_to_write, default=Path("demo"), help="folder for everything (default demo)")
    parser.add_argument(
        "--patients",
        type=whole_number(1, 10**6),
        default=1500,
        metavar="N",
        help="virtual patients to train on (default 1500)",
    )
    parser.add_argument(
        "--unseen-patients",
        type=whole_number(1, 10**6),
        default=400,
        metavar="N",
        help="virtual patients to evaluate on (default 400)",
    )
    parser.add_argument("--recipe", default="cardialign-demo", help="default cardialign-demo")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="default 0")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="any key of the recipe, repeatable",
    )
    add_workers(parser, 2, "Ray workers")
    parser.add_argument("--overwrite", action="store_true", help="start afresh instead of skipping finished stages")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.demo import DemoSettings, run_demo

    settings = DemoSettings(args.patients, args.unseen_patients, args.recipe, args.overrides, args.workers, args.seed)
    return run_demo(args.out, settings, overwrite=args.overwrite)


def summary(result: dict[str, Any]) -> list[str]:
    return [
        "",
        *str(result["_table"]).splitlines(),
        "",
        f"report     {result['report']}",
        f"MLflow UI  {result['mlflow_command']}",
        f"total      {result['total_seconds']:.0f} s",
    ]
