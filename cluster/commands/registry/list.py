"""`cardialign registry list`: what is registered."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri
from cardialign.data_shards.shown import shown

MARKS = {
    "found": " (SCORED ON RECORDS THAT IT WAS TRAINED ON)",
    "unknown": " (whether it was trained on these records is not known)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.registry import list_models

    return {"encoders": list_models(args.tracking_uri)}


def summary(result: dict[str, Any]) -> list[str]:
    rows = result["encoders"]
    if not rows:
        return ["no encoder is registered"]
    width = max(len(shown(row["name"])) for row in rows)
    return [
        shown(
            f"{shown(row['name']):<{width}}  {row['version']:>3}  {', '.join(row['aliases']) or '-':<16}  "
            + "  ".join(f"{key} {value:.4g}{_mark(row, key)}" for key, value in row["metrics"].items())
        )
        for row in rows
    ]


def _mark(row: dict[str, Any], key: str) -> str:
    """What must be known beside a figure: it does not tell by itself that its records were trained on."""
    return MARKS.get(row["seen"].get(key, ""), "")
