"""`cardialign text-bank build`: tokens and frozen embeddings of every distinct report, beside the shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cluster.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of the shard set")
    parser.add_argument("--encoder", default="minilm", help="minilm (default), a Hugging Face id, or a local folder")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="reports are cut there (default 128)")
    parser.add_argument("--style", default="sentences", help="how statements are joined: sentences (default) or merl")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cluster.text_bank import ensure_text_bank
    from pretrain.config import parse_config

    config = parse_config(
        {"text": {"encoder": args.encoder, "max_tokens": args.max_tokens, "style": args.style}, "training": {"steps": 1}}, "text-bank build"
    )
    with Progress("text-bank build") as progress:
        return ensure_text_bank(args.shards, config.text, progress)
