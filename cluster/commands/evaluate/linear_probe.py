"""`cardialign evaluate linear-probe`: what a linear map reads from an encoder's features, beside honest floors."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import add_encoder, add_tracking_uri, file_to_write, folds, place, whole_number
from cardialign.cluster.cli.result_file import check_place, write_result
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.export.usable import UsableEncoder

SHIPPED_FLOORS = ("untrained", "random-kernels", "hand-features")


def shares(text: str) -> tuple[float, ...]:
    """`1,10,100` in percent -> (0.01, 0.1, 1.0)."""
    found = []
    for word in text.split(","):
        try:
            percent = float(word)
        except ValueError:
            percent = math.nan
        if not 0 < percent <= 100:
            raise ArgumentTypeError(f"{word[:40]!r} is not a share in percent, above 0 and up to 100; write 1,10,100")
        found.append(percent / 100)
    return tuple(dict.fromkeys(found))


def floors(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    wrong = [name for name in names if name not in (*SHIPPED_FLOORS, "none")]
    if wrong or ("none" in names and len(names) > 1):
        raise ArgumentTypeError(f"{text[:60]!r} is none of {', '.join(SHIPPED_FLOORS)}, or none alone")
    return () if names == ("none",) else names


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options that say which records a probe learns from, chooses by and is scored on."""
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", metavar="LABEL_SET", help="label set of the shard set, with folds for its parts")
    what.add_argument("--protocol", metavar="NAME:TASK", help="labels and parts of a protocol: clean-v1:ptb-xl-super")
    for part, help in (("train", "learn from"), ("validation", "choose the penalty on"), ("test", "score, once,")):
        parser.add_argument(f"--{part}-folds", type=folds, metavar="1-8", help=f"with --labels: {help} these folds")
    parser.add_argument(
        "--allow-trained",
        action="store_true",
        help="score patients and recordings that the encoder was pretrained on, too, and say so with the figures",
    )
    parser.add_argument("--label-files", type=place, metavar="DIR", help="folder of a protocol's published label files")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    add_task(parser)
    parser.add_argument(
        "--shares",
        type=shares,
        default=(1.0,),
        metavar="1,10,100",
        help="percent of the training records (default 100)",
    )
    parser.add_argument(
        "--subset",
        choices=("random", "stratified", "published-42"),
        default="random",
        help="how a share is chosen (default random)",
    )
    parser.add_argument("--seeds", type=whole_number(1, 1000), default=5, metavar="N", help="per share (default 5)")
    parser.add_argument(
        "--floors",
        type=floors,
        metavar="A,B",
        help=f"beside the encoder: {', '.join(SHIPPED_FLOORS)} (default all that it has), or none",
    )
    parser.add_argument("--bootstrap", type=whole_number(0), default=1000, metavar="N", help="resamples (default 1000)")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the floors (default 0)")
    parser.add_argument("--out", type=file_to_write, help="write the full result there as JSON")
    add_tracking_uri(parser)


def open_probe_task(args: argparse.Namespace) -> tuple[ShardSet, ProbeTask]:
    """What the options of `add_task` say. Raises UsageError where they contradict each other."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.probing.tasks import task_of_folds, task_of_protocol

    parts = (args.train_folds, args.validation_folds, args.test_folds)
    if args.labels and None in parts:
        raise UsageError(
            "--labels needs folds for all three parts", "add --train-folds, --validation-folds, --test-folds"
        )
    if args.protocol and any(part is not None for part in parts):
        raise UsageError("folds with --protocol: the protocol says which records", "leave the folds out")
    shard_set = ShardSet.open(args.shards)
    task = (
        task_of_folds(shard_set, args.labels, *parts)
        if args.labels
        else task_of_protocol(args.protocol, shard_set, args.label_files)
    )
    return shard_set, task


def note_overlap(args: argparse.Namespace, encoder: UsableEncoder, shard_set: ShardSet, task: ProbeTask) -> None:
    """What the encoder has seen of the test records, for the result. Raises UserError unless --allow-trained."""
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap

    overlap = find_overlap(encoder, shard_set, task.rows[task.parts.test])
    if not args.allow_trained:
        refuse_overlap(overlap, encoder, shard_set)
    task.about["trained_on"] = overlap.to_dict()


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.probing.report import ProbeOptions, probe_table
    from cardialign.pretrain.evaluation.probing.systems import systems

    if args.out is not None:
        check_place(args.out)
    shard_set, task = open_probe_task(args)
    options = ProbeOptions(args.shares, args.subset, args.seeds, args.bootstrap)
    opened = open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code)
    with opened as encoder, Progress("features") as progress:
        note_overlap(args, encoder, shard_set, task)
        beside = args.floors
        if beside is None:
            beside = tuple(name for name in SHIPPED_FLOORS if name != "untrained" or not encoder.untrainable)
            task.about.update({"no_untrained_floor": encoder.untrainable} if encoder.untrainable else {})
        found = probe_table(task, systems(encoder, shard_set, task, beside, args.seed, progress=progress), options)
        result = {**found.to_dict(), "encoder": encoder.digest, "shards": shard_set.fingerprint}
    if args.out is not None:
        write_result(args.out, result)
    return {**result, "_table": found.table()}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
