"""`cardialign evaluate fine-tune`: train an encoder on labels, from its weights or from random ones."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_encoder, add_tracking_uri, file_to_write, whole_number
from cardialign.cluster.cli.result_file import check_place
from cardialign.cluster.commands.evaluate.linear_probe import (
    add_task,
    add_track,
    check_track,
    open_probe_task,
    opens_test,
)
from cardialign.data_shards.errors import UsageError

SHIPPED = ("full", "partial", "supervised-s4", "supervised-resnet1d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser, none="none for the supervised presets")
    parser.add_argument("--preset", choices=SHIPPED, default="full", help="where to start and how (default full)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset: --set lr=1e-4"
    )
    add_task(parser)
    parser.add_argument("--seeds", type=whole_number(1, 1000), default=1, metavar="N", help="runs (default 1)")
    parser.add_argument("--bootstrap", type=whole_number(0), default=1000, metavar="N", help="resamples (default 1000)")
    parser.add_argument("--out", type=file_to_write, help="write the full result there as JSON")
    add_track(parser)
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.evaluations.kept import of_tuned, write_with_scores
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.overlap import note_ledger
    from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS, parse_options
    from cardialign.pretrain.evaluation.probing.tuned import tune

    start, _ = PRESETS[args.preset]
    options = parse_options(args.preset, args.set)
    if (start is None) != bool(args.encoder):
        raise UsageError(
            f"--preset {args.preset} starts from {'an encoder' if start is None else 'random weights'}",
            "add --encoder" if start is None else "leave --encoder out, or choose --preset full or partial",
        )
    check_track(args)
    if args.out is not None:
        check_place(args.out)
    shard_set, task = open_probe_task(args)
    with Progress("fine-tune") as progress:
        what, score = f"fine-tune {args.preset}", (options, args.seeds, args.bootstrap, progress)
        if start is not None:
            note_ledger(task, shard_set, {args.preset: None}, allow_trained=True)
            opening = opens_test(args, task, shard_set, f"from random weights: {args.preset}", what)
            found = tune(start, shard_set, task, *score, opening)
        else:
            with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder:
                note_ledger(task, shard_set, {"fine-tuned encoder": encoder}, allow_trained=args.allow_trained)
                opening = opens_test(args, task, shard_set, encoder.training_run(), what)
                found = tune(encoder, shard_set, task, *score, opening)
    result = {**found.to_dict(), "shards": shard_set.fingerprint}
    scored = of_tuned(found, task, shard_set)
    if args.out is not None:
        write_with_scores(args.out, result, [scored])
    if args.track:
        from cardialign.cluster.registry.evidence import log_evaluation

        log_evaluation(args.encoder, args.tracking_uri, f"fine-tune-{args.preset}/{task.name}", result, scored)
    return {**result, "_table": found.table()}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
