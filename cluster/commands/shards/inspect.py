"""`cardialign shards inspect`: the figures of a shard set, or one of its records as a 12-lead picture, alone or beside
the views that a recipe makes of it."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_encoder, add_tracking_uri, drawing_to_write, place, whole_number
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder or URL of the shard set")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--key", help="record to draw")
    which.add_argument("--row", type=whole_number(0), help="record to draw, by row of the index")
    parser.add_argument(
        "--out", type=drawing_to_write, help="picture to write (.png, .svg or .pdf); needs --key or --row"
    )
    parser.add_argument(
        "--views",
        metavar="RECIPE",
        help="with --out: draw the record beside the two views that the first two steps of this recipe make of it",
    )
    add_encoder(parser, none="with --out: draw how much each lead group weighs in its embedding of the record")
    add_tracking_uri(parser)


def _figures(shard_set: Any) -> dict[str, Any]:
    manifest = shard_set.manifest
    return {
        "path": shard_set.path,
        "source": manifest["source"].get("name"),
        "signal": {"sampling_rate": shard_set.spec.sampling_rate, "seconds": shard_set.spec.seconds},
        **{name: manifest["counts"][name] for name in ("records", "patients", "reports", "rejected")},
        "quality": manifest["counts"].get("quality", {}),
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "label_sets": list(shard_set.label_sets),
        "fingerprint": shard_set.fingerprint,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    for option, draws in (("encoder", "its weights on"), ("views", "views in")):
        if getattr(args, option) is not None and args.out is None:
            raise UsageError(f"--{option} draws {draws} a picture, and none is asked for", "add --out FILE.png")
    if args.encoder is not None and args.views is not None:
        raise UsageError("--encoder and --views are two pictures", "ask for one of them, then for the other")
    if args.views is not None and args.out.suffix.lower() not in ("", ".png"):
        raise UsageError(f"{args.out.name}: --views draws several papers, as a PNG", "name it .png")
    shard_set = ShardSet.open(args.shards)
    if args.key is None and args.row is None:
        if args.out is not None:
            raise UsageError("--out names a picture, but no record is chosen", "add --key KEY or --row N")
        return _figures(shard_set)
    if args.row is not None and not 0 <= args.row < len(shard_set):
        raise UsageError(f"--row {args.row} is outside 0..{len(shard_set) - 1}", "choose a row of the index")
    row = args.row if args.row is not None else int(shard_set.select(keys=[args.key]).rows[0])
    record = shard_set.read_record(row)
    facts = {
        "row": row,
        "key": record.key,
        "statements": list(record.statements),
        "labels": {name: list(codes) for name, codes in record.labels.items()},
        "age_years": record.age_years,
        "sex": record.sex,
        "fold": record.fold,
        "quality": {flag: list(leads) for flag, leads in record.quality.items()},
        "measured": _measured(record),
        "picture": None,
    }
    if args.out is not None and args.views is not None:
        return {**facts, **_views(args, record, shard_set)}
    if args.out is not None:
        from cardialign.data_shards.signal.plot import draw_ecg

        weights = None if args.encoder is None else _weights(args, record, shard_set)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        facts["picture"] = str(draw_ecg(record, args.out, weights=weights))
        if weights is not None:
            facts["lead_group_weights"] = {each.group: round(each.weight, 6) for each in weights.values()}
    return facts


def _measured(record: Any) -> dict[str, int]:
    """Rate per minute, intervals in ms and axes in degrees, by software; without what the record does not show."""
    from cardialign.data_shards.signal.measurements import measure

    return {name: round(value) for name, value in measure(record)._asdict().items() if value == value}


def _weights(args: argparse.Namespace, record: Any, shard_set: Any) -> Any:
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.atlas.weights import lead_weights

    with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder:
        return lead_weights(encoder, record, shard_set.spec)


def _views(args: argparse.Namespace, record: Any, shard_set: Any) -> dict[str, Any]:
    from cardialign.data_shards.signal.side_by_side import draw_side_by_side
    from cardialign.pretrain.config import load_config
    from cardialign.pretrain.methods.parts.view_pictures import panels_of_views

    rows = panels_of_views(load_config(args.views), record, shard_set.spec)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = {panel.title: list(panel.lines) for row in rows for panel in row[1:]}
    return {"picture": str(draw_side_by_side(rows, args.out)), "views": drawn}
