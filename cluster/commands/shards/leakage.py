"""`cardialign shards leakage`: do two shard sets, or two parts of one, share patients or recordings?

Exit code 1 when they do, 0 when nothing was found: then `status` says whether both were compared.
"""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import folds, place, whole_number
from cardialign.cluster.cli.progress import Progress
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=place, help="folder of a shard set, e.g. the one trained on")
    parser.add_argument(
        "b", type=place, help="folder of another, e.g. the one evaluated on; may be the same with other parts"
    )
    for side in ("a", "b"):
        parser.add_argument(f"--folds-{side}", type=folds, metavar="1-8", help=f"only these folds of {side}")
        parser.add_argument(
            f"--split-{side}", choices=("train", "val", "test"), help=f"only this part of {side}, by patient hash"
        )
    parser.add_argument(
        "--scale-free", action="store_true", help="recordings also match in another unit or with a shifted baseline"
    )
    parser.add_argument(
        "--no-waveforms", action="store_true", help="compare patients and reports only; reads no signal"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), default=2, metavar="N", help="that read and decode (default 2)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.checks.leakage import find_leakage
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    a, b = ShardSet.open(args.a), ShardSet.open(args.b)
    rows_a = a.select(folds=args.folds_a, split=args.split_a).rows
    rows_b = b.select(folds=args.folds_b, split=args.split_b).rows
    options = {"waveforms": not args.no_waveforms, "scale_free": args.scale_free, "threads": args.threads}
    with Progress("shards leakage") as progress:
        found = find_leakage(a, b, rows_a, rows_b, progress=progress, **options)
    return {**found.to_dict(), "exit_code": FAILED if found.leaked else DONE}


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.data_shards.checks.leakage import FOUND, NONE, UNKNOWN

    verdict = {FOUND: "LEAKED", NONE: "ok", UNKNOWN: "unknown"}[result["status"]]
    lines = [f"{verdict}  a {result['records'][0]} records, b {result['records'][1]} records"]
    if result["same_patients"] is not None:
        lines.append(f"patients in both: {result['same_patients']} ({result['patient_records']} records of b)")
        lines += [
            f"  - patient {patient}: {key_a} in a, {key_b} in b" for patient, key_a, key_b in result["patient_examples"]
        ]
    lines.append(result["patients_note"])
    if result["same_waveforms"] is not None:
        lines.append(f"records of b whose very recording is in a: {result['same_waveforms']}")
        lines += [f"  - {key_b} in b is {key_a} in a" for key_a, key_b in result["waveform_examples"]]
    else:
        lines.append(result["waveforms_note"])
    share = f"{100 * result['same_reports_share']:.1f} %"
    return [
        *lines,
        f"for information: {share} of the records of b have a report text that occurs in a ({result['same_reports']})",
    ]
