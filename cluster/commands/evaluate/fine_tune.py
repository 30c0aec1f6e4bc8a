"""`cardialign evaluate fine-tune`: train an encoder on labels, from its weights or from random ones."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    add_bootstrap,
    add_encoder,
    add_tracking_uri,
    json_to_write,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place
from cardialign.cluster.commands.evaluate.linear_probe import (
    add_ray,
    add_task,
    add_track,
    check_track,
    open_probe_task,
    opens_test,
)
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.probing.fine_tune import FineTuneOptions
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.evaluation.probing.tuned import TrainSeeds

SHIPPED = ("full", "partial", "supervised-s4", "supervised-resnet1d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser, none="none for the supervised presets")
    parser.add_argument("--preset", choices=SHIPPED, default="full", help="where to start and how (default full)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset: --set lr=1e-4"
    )
    add_task(parser)
    parser.add_argument("--seeds", type=whole_number(1, 1000), default=1, metavar="N", help="runs (default 1)")
    add_bootstrap(parser)
    add_ray(parser, "seeds")
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_track(parser)
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.evaluations.kept import of_tuned, write_with_scores
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.overlap import note_ledger
    from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS, parse_options
    from cardialign.pretrain.evaluation.probing.tuned import Runs, tune

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
        what, runs = f"fine-tune {args.preset}", Runs(args.seeds, args.bootstrap)
        if start is not None:
            note_ledger(task, shard_set, {args.preset: None}, allow_trained=True)
            opening = opens_test(args, task, shard_set, f"from random weights: {args.preset}", what)
            with _on_ray(args, start, "", options, (shard_set, task)) as elsewhere:
                found = tune(start, shard_set, task, options, replace(runs, elsewhere=elsewhere), progress, opening)
        else:
            with (
                open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder,
                _on_ray(args, args.encoder, encoder.digest, options, (shard_set, task)) as elsewhere,
            ):
                note_ledger(task, shard_set, {"fine-tuned encoder": encoder}, allow_trained=args.allow_trained)
                opening = opens_test(args, task, shard_set, encoder.training_run(), what)
                found = tune(encoder, shard_set, task, options, replace(runs, elsewhere=elsewhere), progress, opening)
    result = {**found.to_dict(), "shards": shard_set.fingerprint}
    scored = of_tuned(found, task, shard_set)
    if args.out is not None:
        write_with_scores(args.out, result, [scored])
    if args.track:
        from cardialign.cluster.registry.evidence import log_evaluation

        log_evaluation(args.encoder, args.tracking_uri, f"fine-tune-{args.preset}/{task.name}", result, scored)
    return {**result, "_table": found.table()}


@contextlib.contextmanager
def _on_ray(
    args: argparse.Namespace,
    start: str | dict[str, object],
    digest: str,
    options: FineTuneOptions,
    what: tuple[ShardSet, ProbeTask],
) -> Iterator[TrainSeeds | None]:
    """Where --address or --workers say that seeds train; None for this process."""
    if args.address is None and args.workers is None:
        yield None
        return
    from cardialign.cluster.evaluations.ray_seeds import RaySeeds, SeedJob
    from cardialign.cluster.registry.open_encoder import REGISTRY, open_encoder
    from cardialign.pretrain.evaluation.features import scratch_beside
    from cardialign.pretrain.evaluation.probing.cells import place_of

    shard_set, task = what
    opened: Any = start
    if isinstance(start, str):
        # a folder as every node sees it
        name = start if start.startswith((REGISTRY, "outside:")) else str(Path(start).expanduser().absolute())
        opened = partial(open_encoder, name, args.tracking_uri, args.trust_remote_code)
    with scratch_beside(shard_set) as folder:
        own = SeedJob(
            opened, digest, place_of(shard_set), shard_set.fingerprint, task, options, folder / "seed"
        )  # fmt: skip
        yield RaySeeds(own, None if args.address in (None, "local") else args.address, args.workers or 0)


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
