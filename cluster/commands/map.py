"""`cardialign map`: the records of a shard set as an encoder, or two, see them, on a plane, by class and by age."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import (
    add_batch_size,
    add_encoder,
    add_folds,
    add_split,
    add_tracking_uri,
    amount,
    file_to_write,
    place,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UsageError

PICTURES = (".svg", ".png", ".pdf")
PAGES = (".html", ".htm")
MOST = 50_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    parser.add_argument(
        "--beside", metavar="ENCODER", help="a second one on the same records, e.g. without the age gate"
    )
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    parser.add_argument(
        "--labels", metavar="SET", help="label set that colours the map (default: the only one; without any, ages do)"
    )
    parser.add_argument(
        "--classes", metavar="A,B", help="up to six of its codes to colour (default: the most frequent)"
    )
    add_folds(parser, "only these folds")
    add_split(parser, "only this part")
    parser.add_argument(
        "--records", type=whole_number(1, MOST), default=3000, metavar="N",
        help="at most so many, drawn by --seed (default 3000)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the sample and the layout (default 0)"
    )
    parser.add_argument(
        "--perplexity", type=amount, metavar="P", help="about how many neighbours count for a record (default 30)"
    )
    add_batch_size(parser)
    parser.add_argument(
        "--out", type=file_to_write, action="append", required=True, metavar="FILE",
        help="write a page (.html) or a picture (.svg, .png, .pdf) there; repeatable",
    )  # fmt: skip
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.atlas.chart import MapOptions, make_atlas

    for out in args.out:
        if out.suffix.lower() not in (*PICTURES, *PAGES):
            raise UsageError(
                f"--out {out} is no page and no picture", f"name a file {', '.join((*PAGES[:1], *PICTURES))}"
            )
        check_place(out)
    classes = None if args.classes is None else [code.strip() for code in args.classes.split(",") if code.strip()]
    shard_set = ShardSet.open(args.shards)
    rows = shard_set.select(folds=args.folds, split=args.split).rows
    options = MapOptions(args.labels, classes, args.records, args.seed, args.perplexity, args.batch_size)
    with contextlib.ExitStack() as opened, Progress("map") as progress:
        given = list(filter(None, (args.encoder, args.beside)))
        encoders = [
            (name, opened.enter_context(open_encoder(each, args.tracking_uri, args.trust_remote_code)))
            for name, each in zip(_short(given), given, strict=True)
        ]
        atlas = make_atlas(encoders, shard_set, rows, options, progress)
    for out in args.out:
        _write(out, atlas)
    return {**atlas.to_dict(), "out": [str(out) for out in args.out]}


def _short(names: list[str]) -> list[str]:
    """Encoders as they are called on the page: by the end of their path, which says where no disk of ours is."""
    ends = [name if ":" in name else Path(name).name or name for name in names]
    return ends if len(set(ends)) == len(ends) else names


def _write(out: Path, atlas: Any) -> None:
    if out.suffix.lower() in PAGES:
        from cardialign.cluster.pages.map_page import write_map_page

        write_map_page(out, atlas)
    else:
        from cardialign.pretrain.evaluation.atlas.draw import write_sheet

        write_sheet(atlas, out)


def summary(result: dict[str, Any]) -> list[str]:
    by = result["label_set"] or "age: the set has no labels"
    lines = [f"{result['records']:,} of {result['out_of']:,} records, by {by}"]
    for chart in result["charts"] if result["label_set"] else ():
        share, chance = chart["sharing"]["value"], chart["sharing_by_chance"]["value"]
        shared = (
            "no record has a class" if share is None else f"{100 * share:.0f} % of the {chart['neighbours']} nearest "
        )
        shared += "" if share is None else f"share a class (by chance {100 * chance:.0f} %)"
        lines.append(f"{chart['encoder']}: {shared}")
    return [*lines, *result["out"]]
