"""`cardialign text-bank build`: tokens and frozen embeddings of every distinct report, beside the shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import add_pooling, place, whole_number
from cardialign.cluster.cli.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder of the shard set")
    parser.add_argument("--encoder", default="minilm", help="minilm (default), a Hugging Face id, or a local folder")
    add_pooling(parser)
    parser.add_argument(
        "--max-tokens", type=whole_number(8, 512), default=128, metavar="N", help="reports are cut there (default 128)"
    )
    parser.add_argument(
        "--distant",
        type=whole_number(1, 100_000),
        nargs="?",
        const=64,
        metavar="K",
        help="also the table of the K (default 64) most distant reports of each",
    )
    parser.add_argument(
        "--reports",
        type=place,
        metavar="FOLDER",
        help="of the reports that `text complete` or `text enrich` put there",
    )
    parser.add_argument("--style", default="sentences", help="how statements are joined: sentences (default) or merl")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.runs.text_bank import ensure_text_bank
    from cardialign.pretrain.config import parse_config

    config = parse_config(
        {
            "text": {
                "encoder": args.encoder,
                "pooling": args.pooling,
                "max_tokens": args.max_tokens,
                "style": args.style,
            },
            "training": {"steps": 1},
        },
        "text-bank build",
    )
    with Progress("text-bank build") as progress:
        bank = ensure_text_bank(args.shards, config.text, progress, args.reports)
    if args.distant is None:
        return bank
    from cardialign.data_shards.text.bank import TextBank
    from cardialign.data_shards.text.distant import build_distant

    with Progress("distant reports") as progress:
        table = build_distant(TextBank(Path(bank["path"])), args.distant, progress)
    return {**bank, "distant": table.shape[1]}
