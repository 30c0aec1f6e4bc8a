"""`cardialign text-bank stats`: how alike reports are inside global batches, and what thresholds this suggests."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_folds, add_pooling, place, whole_number

SHOWN = ("1", "10", "50", "90", "99")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder of a shard set whose text bank is built")
    parser.add_argument("--encoder", help="report encoder of the bank, when there are several")
    add_pooling(parser)
    parser.add_argument(
        "--max-tokens", type=whole_number(8, 512), default=128, metavar="N", help="of that bank (default 128)"
    )
    parser.add_argument("--style", help="report style of the bank, when there are several")
    parser.add_argument(
        "--global-batch",
        type=whole_number(2, 10**7),
        nargs="+",
        default=[256, 1024, 4096],
        metavar="B",
        help="default 256 1024 4096",
    )
    parser.add_argument(
        "--batches",
        type=whole_number(1, 10**6),
        default=8,
        metavar="N",
        help="batches of each size to look at (default 8)",
    )
    parser.add_argument("--seed", type=whole_number(-(2**63), 2**63 - 1), default=0, help="of the order (default 0)")
    parser.add_argument(
        "--reports",
        type=place,
        metavar="FOLDER",
        help="of the reports that `text complete` or `text enrich` put there",
    )
    add_folds(parser, "only records of these folds")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.text.bank import TextBank
    from cardialign.data_shards.text.statistics import MIMIC_RAW_MEAN, similarity_statistics

    shard_set = ShardSet.open(args.shards, reports=args.reports)
    bank = TextBank.open(args.shards, _fingerprint(args), args.style, reports=args.reports)
    selection = shard_set.select(folds=args.folds, require_report=True)
    found = similarity_statistics(
        shard_set,
        bank,
        selection.rows,
        fingerprint=selection.fingerprint,
        global_batches=args.global_batch,
        batches=args.batches,
        seed=args.seed,
    )
    advice = (
        f"raw cosine is useless as a measure of likeness: any two reports are at {found.raw.mean:.3f} on average here "
        f"({MIMIC_RAW_MEAN} on MIMIC-IV-ECG with MedCPT); use the centred cosine or the statements"
    )
    return {"bank": str(bank.path), "encoder": bank.description["encoder"], "advice": advice, **found.to_dict()}


def _fingerprint(args: argparse.Namespace) -> str | None:
    if args.encoder is None:
        return None
    from cardialign.pretrain.config import TextConfig
    from cardialign.pretrain.text.encoder import TextEncoder

    return TextEncoder(TextConfig(encoder=args.encoder, pooling=args.pooling, max_tokens=args.max_tokens)).fingerprint


def _row(name: str, spread: dict[str, Any]) -> str:
    figures = [
        spread["mean"],
        spread["deviation"],
        spread["low"],
        *(spread["percentiles"][p] for p in SHOWN),
        spread["high"],
    ]
    return f"{name:<22}" + "".join(f"{value:>8.3f}" for value in figures)


def summary(result: dict[str, Any]) -> list[str]:
    heads = ["mean", "sd", "min", *(f"{p} %" for p in SHOWN), "max"]
    lines = [
        f"{result['records']} records, {result['reports']} distinct reports, "
        f"{result['pairs']} pairs within global batches",
        f"{'similarity':<22}" + "".join(f"{head:>8}" for head in heads),
        _row("raw cosine", result["raw"]),
        _row("centred cosine", result["centred"]),
        _row("statement overlap", result["jaccard"]),
        result["advice"],
        f"exact duplicates: {100 * result['duplicate_pairs']:.2f} % of pairs",
    ]
    for each in result["duplicates"]:
        lines.append(
            f"  global batch {each['global_batch']}: {each['per_record']:.2f} other records with the same report "
            f"for each record, {100 * each['share_of_records']:.0f} % of records have any"
        )
    lines += result["left_out"]
    for each in result["suggested"]:
        negatives = ", ".join(f"{count:.0f} of {int(size) - 1}" for size, count in each["effective_negatives"].items())
        lines += [
            "",
            f"suggested for similarity {each['similarity']} ({each['reason']})",
            f"effective negatives: {negatives}",
        ]
        lines += result["yaml"][each["similarity"]]
    return lines
