"""`cardialign cohort`: virtual patients in the file layout of a public data set."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from cardialign.cluster.cli.options import add_workers, place_to_write, whole_number
from cardialign.cluster.cli.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=place_to_write, help="new folder")
    parser.add_argument(
        "--patients",
        type=whole_number(1, 10**7),
        required=True,
        metavar="N",
        help="how many patients; each has one or several records",
    )
    parser.add_argument("--records", type=whole_number(1, 10**8), metavar="N", help="stop at so many records")
    parser.add_argument(
        "--layout",
        default="mimic-iv-ecg",
        help="mimic-iv-ecg (default), ptb-xl, paediatric or lifespan (people from birth to 90 years by the norms of "
        "their age); `shards build` reads the first two by their names, the others as zzu-pecg",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=0,
        help="same seed, same bytes, whatever --workers (default 0)",
    )
    parser.add_argument(
        "--sampling-rate", type=whole_number(1, 1_000_000), default=500, metavar="HZ", help="default 500"
    )
    parser.add_argument(
        "--findings", type=lambda text: tuple(text.split(",")), metavar="CODE,CODE", help="only these findings"
    )
    parser.add_argument(
        "--prevalence", default="balanced", help="balanced (default: every finding about equally often) or clinical"
    )
    add_workers(parser, 1, "processes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.cohort.generate import Cohort, make_cohort

    with Progress("cohort") as progress:
        made = make_cohort(
            args.out,
            Cohort(
                patients=args.patients,
                records=args.records,
                layout=args.layout,
                seed=args.seed,
                sampling_rate=args.sampling_rate,
                findings=args.findings,
                prevalence=args.prevalence,
            ),
            workers=args.workers,
            progress=progress,
        )
    return asdict(made)
