"""`cardialign replay`: one step of a run made again, to see where its numbers went bad; the run is not changed."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import existing_folder, place, whole_number

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")
    parser.add_argument("step", type=whole_number(1), help="the step to make again, as in the loss trace (from 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.training.replay import replay

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    return {"run_dir": str(args.run_dir), **replay(args.run_dir, args.step)}


def summary(result: dict[str, Any]) -> list[str]:
    began = "the start" if result["checkpoint"] is None else f"the checkpoint of step {result['checkpoint']}"
    first, before = result["first"], result["written_down"]
    lines = [
        f"step {result['step']}, made again from {began}",
        f"loss           {result['loss']}",
        f"gradient norm  {result['gradient_norm']}",
        f"first not finite: {first['where']}: {first['what']}" if first else "every output and gradient is finite",
    ]
    if before is not None:
        same = "the same records" if result["same_batch"] else "OTHER RECORDS: the shards are not those of the run"
        lines.append(
            f"the run itself: loss {before['loss']}, gradient norm {before['gradient_norm']}, "
            f"{before['world_size']} workers; {same}"
        )
    records = [record for rank in result["ranks"] for record in rank["records"]]
    records.sort(key=_finite_and_small)
    lines.append("records, the oddest first:")
    for each in records[:SHOWN]:
        span = f"{each['min_mv']:.4g} to {each['max_mv']:.4g} mV" if "min_mv" in each else "no finite sample"
        odd = "" if each["features_finite"] else "  features not finite"
        odd += f"  {each['not_finite']} samples not finite" if each["not_finite"] else ""
        lines.append(f"  {each['record']}  {each['shard']}  {each['leads']} leads  {span}{odd}")
    return lines + ([f"  and {len(records) - SHOWN} more (--json)"] if len(records) > SHOWN else [])


def _finite_and_small(record: dict[str, Any]) -> tuple[bool, int, float]:
    return record["features_finite"], -record["not_finite"], -max(-record.get("min_mv", 0.0), record.get("max_mv", 0.0))
