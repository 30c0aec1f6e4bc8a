"""`cardialign evaluate select`: which checkpoint or encoder is best, by validation records alone."""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    add_encoder,
    add_label_files,
    add_tracking_uri,
    folds,
    json_to_write,
    place,
)
from cardialign.cluster.cli.result_file import check_place, write_result
from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.selection.select import Validation
    from cardialign.pretrain.export.usable import UsableEncoder

SHIPPED_CRITERIA = ("retrieval", "rankme", "probe")

log = logging.getLogger(__name__)


def candidate(text: str) -> str:
    """A reference to the registry as it is, anything else as a `place`."""
    return text if text.startswith("models:/") else str(place(text))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    several = {"nargs": "+", "metavar": "RUN|ENCODER", "type": candidate}
    add_encoder(parser, "candidates", "run directories (all sound checkpoints of each)", **several)
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--validation-folds", type=folds, metavar="9", help="judge by the records of these folds")
    where.add_argument("--split", choices=("val",), help="judge by this part (by patient hash)")
    where.add_argument("--protocol", metavar="NAME:TASK", help="judge by the validation part of a protocol's task")
    parser.add_argument(
        "--criterion",
        choices=SHIPPED_CRITERIA,
        default="retrieval",
        help="retrieval of reports (default) and rankme ask for no labels; probe learns from labelled training records",
    )
    parser.add_argument("--labels", metavar="LABEL_SET", help="for probe: with --train-folds and --validation-folds")
    parser.add_argument("--train-folds", type=folds, metavar="1-8", help="for probe: learn from these folds")
    add_label_files(parser)
    parser.add_argument(
        "--allow-trained", action="store_true", help="judge by records that a candidate was pretrained on, too"
    )
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_tracking_uri(parser)


def validation_of(args: argparse.Namespace, shard_set: ShardSet) -> Validation:
    """The validation records that the options name. Raises UsageError where they contradict each other."""
    from cardialign.pretrain.evaluation.probing.tasks import task_of_folds, task_of_protocol
    from cardialign.pretrain.evaluation.selection.select import Validation

    if bool(args.labels) != bool(args.train_folds) or (args.labels and args.validation_folds is None):
        raise UsageError(
            "--labels, --train-folds and --validation-folds belong together", "give all three, or leave --labels out"
        )
    if args.label_files is not None and not args.protocol:
        raise UsageError("--label-files belongs to a protocol", "add --protocol NAME:TASK or leave it out")
    if args.criterion == "probe" and not (args.labels or args.protocol):
        raise UsageError("--criterion probe needs labels", "add --protocol NAME:TASK, or --labels and --train-folds")
    if args.protocol or args.labels:
        task = (
            task_of_protocol(args.protocol, shard_set, args.label_files, ("train", "val"))
            if args.protocol
            else task_of_folds(shard_set, args.labels, args.train_folds, args.validation_folds, ())
        )
        rows = task.rows[task.parts.validation]
        where = "its validation part" if args.protocol else f"folds {_listed(args.validation_folds)}"
        return Validation(shard_set, rows, f"{task.name}, {where}: {len(rows)} records", task)
    rows = shard_set.select(folds=args.validation_folds, split=args.split).rows
    where = f"split {args.split}" if args.split else f"folds {_listed(args.validation_folds)}"
    return Validation(shard_set, rows, f"{where}: {len(rows)} records")


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def opened(
    names: list[str], tracking_uri: str, trust_remote_code: bool = False
) -> Generator[tuple[str, UsableEncoder], None, None]:
    """Every candidate by its name, one at a time. Raises UserError for what is none.

    trust_remote_code: of those that come from outside.
    """
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.outside.encoder import is_outside
    from cardialign.pretrain.training.checkpoints.condition import examine
    from cardialign.pretrain.training.checkpoints.files import committed

    for name in names:
        outside = is_outside(name)
        checkpoints = [] if outside or name.startswith("models:/") else committed(Path(name))
        if not checkpoints:
            with open_encoder(name, tracking_uri, outside and trust_remote_code) as encoder:
                yield name, encoder
            continue
        sound = 0
        for step, path in checkpoints:
            found = examine(path)
            if found.condition != "verified":
                log.warning("select checkpoint=%s action=pass-over reason=%s", path, found.said())
                continue
            sound += 1
            with tempfile.TemporaryDirectory(prefix="encoder-") as scratch:
                folder = Path(scratch) / "encoder"
                export_run(name, folder, step=step, program=False)
                with open_encoder(str(folder), tracking_uri) as encoder:
                    yield f"{name} step {step}", encoder
        if not sound:
            raise UserError(f"{name} has no sound checkpoint", "see `cardialign checkpoints verify`")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.selection.select import choose_encoder

    if args.out is not None:
        check_place(args.out)
    on = validation_of(args, ShardSet.open(args.shards))
    each = opened(args.candidates, args.tracking_uri, args.trust_remote_code)
    with Progress("select") as progress, contextlib.closing(each) as candidates:
        found = choose_encoder(candidates, on, args.criterion, allow_trained=args.allow_trained, progress=progress)
    result = found.to_dict()
    if args.out is not None:
        write_result(args.out, result)
    return {**result, "_table": found.table()}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
