"""`cardialign shards verify`: is every byte of a shard set what its index and manifest promise?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from cardialign.cluster.cli.options import place
from cardialign.cluster.cli.progress import Progress
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder or URL of the shard set")
    parser.add_argument("--quick", action="store_true", help="names, sizes and counts only; no digest and no decoding")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.checks.verify import verify

    with Progress("shards verify") as progress:
        found = verify(args.shards, quick=args.quick, progress=progress)
    return {**asdict(found), "exit_code": DONE if found.ok else FAILED}


def summary(result: dict[str, Any]) -> list[str]:
    notes = [f"  note: {note}" for note in result["notes"]]
    if not result["problems"]:
        return [f"ok  {result['records']} records in {result['shards']} shards", *notes]
    return [f"{len(result['problems'])} problems", *(f"  - {problem}" for problem in result["problems"]), *notes]
