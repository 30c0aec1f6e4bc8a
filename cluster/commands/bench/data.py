"""`cardialign bench data`: how fast records go from files to shards, and from shards to float batches, on this machine.

The alternatives are measured beside it.
"""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_pooling, place, whole_number
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "shards", nargs="?", type=place, help="shard set to read (default: a small virtual one, made for the purpose)"
    )
    which.add_argument(
        "--wfdb", type=place, metavar="FOLDER", help="measure the WFDB records below this folder instead"
    )
    parser.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help="only codec, build, stream, wait, start, similarity or distant; may be repeated",
    )
    parser.add_argument(
        "--records", type=whole_number(1, 10**7), default=256, metavar="N", help="records to measure with (default 256)"
    )
    parser.add_argument(
        "--rounds",
        type=whole_number(1, 1000),
        default=5,
        metavar="N",
        help="rounds; every rate is their median (default 5)",
    )
    parser.add_argument(
        "--index-records",
        type=whole_number(1, 10**8),
        default=800_000,
        metavar="N",
        help="size of the index for start and memory (default 800000)",
    )
    parser.add_argument(
        "--distant-reports",
        type=whole_number(2, 10**8),
        default=180_000,
        metavar="N",
        help="size of the table of the most distant reports (default 180000)",
    )
    parser.add_argument(
        "--phrases", type=place, metavar="FILE", help="report phrases, one per line (default: those of virtual cohorts)"
    )
    parser.add_argument(
        "--encoder",
        default="minilm",
        help="report encoder of the similarity figures, or none: word counts (default minilm)",
    )
    add_pooling(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table to paste into a README")
    parser.add_argument(
        "--scale", action="store_true", help="also the order and memory of 10 million made-up records (minutes)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.benchmarks.figures import OURS, SCALE, measure_data
    from cardialign.data_shards.benchmarks.material import Phrases, Sizes
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    measures = {measure.__name__.removeprefix("measure_"): measure for measure in OURS}
    unknown = sorted(set(args.op or ()) - measures.keys())
    if unknown:
        raise UsageError(f"--op {', '.join(unknown)} is not measured here", f"choose from {', '.join(measures)}")
    shards = ShardSet.open(args.shards) if args.shards is not None else None
    phrases = Phrases(args.phrases)
    if args.encoder != "none":
        from cardialign.pretrain.config import TextConfig
        from cardialign.pretrain.text.encoder import TextEncoder

        encoder = TextEncoder(TextConfig(encoder=args.encoder, pooling=args.pooling, max_tokens=32))
        phrases = Phrases(args.phrases, encoder, args.encoder)
    chosen = [measure for name, measure in measures.items() if args.op is None or name in args.op]
    figures = measure_data(
        shards if shards is not None else args.wfdb,
        records=args.records,
        rounds=args.rounds,
        sizes=Sizes(index_records=args.index_records, distant_reports=args.distant_reports),
        phrases=phrases,
        measures=[*chosen, *(SCALE if args.scale else ())],
    )
    return {"markdown": args.markdown, **figures}


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.data_shards.benchmarks.table import markdown, plain

    return markdown(result) if result["markdown"] else plain(result)
