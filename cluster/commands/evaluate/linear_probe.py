"""`cardialign evaluate linear-probe`: what a linear map reads from an encoder's features, beside honest floors."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    add_allow_trained,
    add_bootstrap,
    add_encoder,
    add_label_files,
    add_tracking_uri,
    folds,
    json_to_write,
    place,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.probing.cells import CellExecutor, ProbePlan
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask

SHIPPED_FLOORS = ("untrained", "random-kernels", "hand-features")
SUPERVISED = ("supervised-s4", "supervised-resnet1d")


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
    return _some_of(SHIPPED_FLOORS, text)


def supervised(text: str) -> tuple[str, ...]:
    return _some_of(SUPERVISED, text)


def _some_of(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if name not in (*known, "none")]
    if wrong or not names or ("none" in names and len(names) > 1):
        raise ArgumentTypeError(f"{text[:60]!r} is none of {', '.join(known)}, or none alone")
    return () if names == ("none",) else names


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options that say which records a probe learns from, chooses by and is scored on."""
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", metavar="LABEL_SET", help="label set of the shard set, with folds for its parts")
    what.add_argument("--protocol", metavar="NAME:TASK", help="labels and parts of a protocol: clean-v1:ptb-xl-super")
    for part, help in (("train", "learn from"), ("validation", "choose the penalty on"), ("test", "score, once,")):
        parser.add_argument(f"--{part}-folds", type=folds, metavar="1-8", help=f"with --labels: {help} these folds")
    add_allow_trained(parser)
    add_label_files(parser)


def add_probe(parser: argparse.ArgumentParser, default_shares: tuple[float, ...]) -> None:
    """The options that say how a task is probed."""
    told = ",".join(f"{100 * share:g}" for share in default_shares)
    parser.add_argument(
        "--shares",
        type=shares,
        default=default_shares,
        metavar="1,10,100",
        help=f"percent of the training records (default {told})",
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
    parser.add_argument(
        "--supervised",
        type=supervised,
        default=(),
        metavar="A,B",
        help=f"also train from scratch on each share: {', '.join(SUPERVISED)} (minutes a cell; default none)",
    )
    parser.add_argument(
        "--attention", action="store_true", help="also read the tokens by a learnt query (attention-pooled probe)"
    )
    add_bootstrap(parser)
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the floors (default 0)")
    add_ray(parser, "shares")


def add_ray(parser: argparse.ArgumentParser, what: str) -> None:
    """The options that say where pieces of work (`what`) are done."""
    parser.add_argument(
        "--address",
        metavar="auto|HOST:PORT|local",
        help="fit as Ray tasks: on the cluster at this address (which sees the shards), or on a local Ray",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 100_000),
        metavar="N",
        help=f"fit so many {what} at a time, as Ray tasks (default: one after the other, here)",
    )


def probe_plan(args: argparse.Namespace) -> ProbePlan:
    """What the options of `add_probe` say."""
    from cardialign.pretrain.evaluation.probing.cells import ProbePlan
    from cardialign.pretrain.evaluation.probing.report import ProbeOptions

    options = ProbeOptions(
        tuple(sorted(args.shares)), args.subset, args.seeds, args.bootstrap, supervised=args.supervised
    )
    return ProbePlan(options, args.floors, args.seed, args.attention)


def executor_of(args: argparse.Namespace) -> CellExecutor:
    """Where the options of `add_probe` say that cells run."""
    if args.address is None and args.workers is None:
        from cardialign.pretrain.evaluation.probing.cells import InThisProcess

        return InThisProcess()
    from cardialign.cluster.evaluations.ray_cells import RayCells

    return RayCells(None if args.address in (None, "local") else args.address, args.workers or 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    add_task(parser)
    add_probe(parser, (1.0,))
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_track(parser)
    add_tracking_uri(parser)


def add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--track",
        action="store_true",
        help="also log figures and scores to the registered encoder's MLflow run and version, as evidence for its gate",
    )


def check_track(args: argparse.Namespace) -> None:
    """Raises UsageError when there is no registered encoder to log to."""
    if args.track and not str(args.encoder).startswith("models:/"):
        raise UsageError(
            f"--track: {args.encoder} is a folder, not a registered encoder", "give --encoder models:/NAME@ALIAS"
        )


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
    if args.labels and args.label_files is not None:
        raise UsageError("--label-files belongs to a protocol", "add --protocol NAME:TASK instead of --labels")
    shard_set = ShardSet.open(args.shards)
    task = (
        task_of_folds(shard_set, args.labels, *parts)
        if args.labels
        else task_of_protocol(args.protocol, shard_set, args.label_files)
    )
    return shard_set, task


def opens_test(
    args: argparse.Namespace, task: ProbeTask, shard_set: ShardSet, run: str, what: str
) -> Callable[[], None]:
    """A function that writes down that the test records are about to be scored, for the result too."""
    from cardialign.pretrain.evaluation.openings import ScoredPart, open_test

    def note() -> None:
        part = ScoredPart(task.name, shard_set, task.rows[task.parts.test])
        task.about["test_opened"] = open_test(part, run, f"evaluate {what}", args.encoder)

    return note


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.evaluations.kept import of_probe, of_shares, write_with_scores
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.overlap import note_ledger
    from cardialign.pretrain.evaluation.probing.cells import probe_task

    check_track(args)
    if args.out is not None:
        check_place(args.out)
    shard_set, task = open_probe_task(args)
    plan = probe_plan(args)
    opened = open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code)
    with opened as encoder, Progress("features") as progress:
        figures = {"encoder": encoder, **dict.fromkeys(plan.named(encoder))}
        note_ledger(task, shard_set, figures, allow_trained=args.allow_trained)
        task.about.update(plan.lacking(encoder))
        opening = opens_test(args, task, shard_set, encoder.training_run(), "linear-probe")
        found = probe_task(encoder, shard_set, task, plan, executor_of(args), progress, opening)
        result = {**found.to_dict(), "encoder": encoder.digest, "shards": shard_set.fingerprint}
    how = {"encoder": result["encoder"], "subset": args.subset}
    if args.out is not None:
        write_with_scores(args.out, result, of_shares(found, task, shard_set, how))
    if args.track:
        from cardialign.cluster.registry.evidence import log_evaluation

        for figure in found.tracked():
            share = figure["share"]
            name = f"linear-probe/{found.task['name']}/{100 * share:g}"
            scored = of_probe(found, task, shard_set, share, how)
            log_evaluation(args.encoder, args.tracking_uri, name, figure, scored)
    return {**result, "_table": found.table()}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
