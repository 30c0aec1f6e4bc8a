"""`cardialign doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import place
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=place, help="where runs will be stored; its free space is checked (default: this folder)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.environment.doctor import examine

    checks = examine(args.run_dir or Path("."))
    missing = [check.name for check in checks if check.state == "missing"]
    return {
        "checks": [check.__dict__ for check in checks],
        "missing": missing,
        "exit_code": FAILED if missing else DONE,
    }


def summary(result: dict[str, Any]) -> list[str]:
    width = max(len(check["name"]) for check in result["checks"])
    lines = []
    for check in result["checks"]:
        lines.append(f"{check['state']:<7}  {check['name']:<{width}}  {check['found']}")
        if check["remedy"]:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check['remedy']}")
    return lines
