"""`cardialign pretrain`: one recipe, one shard set or a mixture, one run directory. Run it again and it continues."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from cardialign.cluster.cli.options import (
    LOCAL,
    add_folds,
    add_placement,
    add_sizes,
    add_split,
    add_tracking_uri,
    amount,
    place,
    place_to_write,
    whole_number,
)
from cardialign.data_shards.errors import UsageError

SHORTHANDS = {
    "seed": "seed",
    "steps": "training.steps",
    "epochs": "training.epochs",
    "global_batch": "training.global_batch",
    "micro_batch": "training.micro_batch",
    "zero_stage": "training.zero_stage",
    "precision": "training.precision",
    "checkpoint_every": "training.checkpoint_every",
    "lr": "optimizer.lr",
}
"""Options that are the last word of a YAML key; every other key is reached with --set."""


def _add_resume(parser: argparse.ArgumentParser) -> None:
    """What becomes of a run that is there."""
    there = parser.add_mutually_exclusive_group()
    there.add_argument(
        "--extend", dest="resume", action="store_const", const="extend",
        help="continue the run to another number of steps or epochs: no second warm-up, the learning rate goes on from "
        "where it is and falls to its lowest at the new last step",
    )  # fmt: skip
    there.add_argument(
        "--start-over", dest="resume", action="store_const", const="start-over",
        help="move the run that is in --run-dir to earlier/N there and begin at step 0",
    )  # fmt: skip
    parser.add_argument(
        "--trust-run-dir", action="store_true",
        help="go on from checkpoints that other people may write; who can write them can have this account run code",
    )  # fmt: skip


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    metrics = parser.add_argument_group("metrics", "for Prometheus; a dashboard and alert rules are in deploy/grafana")
    metrics.add_argument(
        "--metrics-port", type=whole_number(0, 65535), metavar="PORT",
        help="serve http://HOST:PORT/metrics while the command runs; 0: a free port (default: none)",
    )  # fmt: skip
    metrics.add_argument(
        "--metrics-host", metavar="HOST",
        help=f"who may ask: {LOCAL}, this machine alone (default); 0.0.0.0, everyone who reaches it. "
        "It tells figures and the run's name, and asks for no password",
    )  # fmt: skip
    metrics.add_argument(
        "--peak-tflops", type=amount, metavar="N",
        help="what one worker's device reaches at most, as you measured it (`bench kernels`), for MFU; that of H100, "
        "H200, A100 and L40S is known",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe or a YAML file")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--shards", type=place, help="folder or URL of the shard set")
    data.add_argument(
        "--mixture",
        action="append",
        metavar="SHARDS=WEIGHT",
        help="a shard set and its share of every global batch, repeatable; "
        "folds and split of its own: YAML data.mixture",
    )
    parser.add_argument(
        "--run-dir", type=place_to_write, required=True, help="folder of the run, on storage that every worker sees"
    )
    add_folds(parser, "train on these folds (YAML: data.folds)")
    add_split(parser, "train on this part; YAML: data.split")
    add_sizes(
        parser,
        2,
        "Ray workers; changes speed, not the result. MIN-MAX: as many as there is room for, fewer when a node is lost, "
        "more when one comes",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="join the Ray cluster there (auto, ray://host:10001); default: start a local Ray",
    )
    _add_resume(parser)
    parser.add_argument(
        "--max-failures",
        type=whole_number(0, 10_000),
        default=3,
        metavar="N",
        help="worker groups that may die before the run fails (default 3)",
    )
    add_placement(parser)
    _add_metrics(parser)
    values = parser.add_argument_group("configuration (the words of the YAML)")
    for option, key in SHORTHANDS.items():
        values.add_argument(f"--{option.replace('_', '-')}", metavar="VALUE", help=f"YAML: {key}")
    values.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="any dotted key, repeatable; SECTION={key: value} leaves its other keys, with a name in it none",
    )
    _add_tracking(parser)


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    tracking = parser.add_argument_group(
        "tracking",
        "MLflow's environment variables count (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN, MLFLOW_REGISTRY_URI, "
        "MLFLOW_RUN_ID, MLFLOW_HTTP_REQUEST_TIMEOUT, ...); an option wins.",
    )
    add_tracking_uri(tracking)
    tracking.add_argument(
        "--tracking-optional",
        action="store_true",
        help="train even when the store does not take the run; replay later with `tracking sync`",
    )
    tracking.add_argument(
        "--experiment", help="MLflow experiment (default: MLFLOW_EXPERIMENT_NAME or _ID, else cardialign)"
    )
    tracking.add_argument(
        "--register", metavar="NAME", help="register the exported encoder under this name, alias `candidate`"
    )


def overrides(args: argparse.Namespace) -> list[str]:
    """Options -> `key=value` lines, before those of --set.

    Giving steps takes epochs out of the recipe, and the other way round.
    """
    _one_duration(args)
    lines = []
    if args.shards is not None:
        lines += [f"data.shards={json.dumps(str(args.shards))}", "data.mixture=[]"]
    if args.mixture is not None:
        lines += ["data.shards=null", f"data.mixture={json.dumps([_mixture_part(text) for text in args.mixture])}"]
    if args.folds is not None:
        lines.append(f"data.folds={list(args.folds)}")
    if args.split is not None:
        lines.append(f"data.split={args.split}")
    if args.steps is not None and args.epochs is None:
        lines.append("training.epochs=null")
    if args.epochs is not None and args.steps is None:
        lines.append("training.steps=null")
    lines += [
        f"{key}={getattr(args, option)}" for option, key in SHORTHANDS.items() if getattr(args, option) is not None
    ]
    return [*lines, *args.overrides]


def _one_duration(args: argparse.Namespace) -> None:
    """Raises UsageError where both a number of steps and one of epochs were typed, naming the options."""
    said: dict[str, str] = {}
    for key in ("steps", "epochs"):
        for assignment in args.overrides:
            name, _, value = assignment.partition("=")
            if name.strip() == f"training.{key}":
                said[key] = "" if value.strip() in ("null", "~", "") else f"--set training.{key}={value.strip()}"
        if getattr(args, key) is not None:
            said.setdefault(key, f"--{key} {getattr(args, key)}")
    if said.get("steps") and said.get("epochs"):
        raise UsageError(f"{said['steps']} and {said['epochs']} both say how long to train", "give one of the two")


def _mixture_part(text: str) -> dict[str, Any]:
    shards, equals, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        equals = ""
    if not (equals and shards.strip()):
        raise UsageError(
            f"--mixture {text!r} is not SHARDS=WEIGHT", "write for example --mixture ptb-xl=0.3 --mixture mimic=0.7"
        )
    return {"shards": shards, "weight": number}


def _hangs(minutes: float) -> str:
    from cardialign.cluster.runs.deciding.hangs import START_TIMES

    return (
        f"workers that do not move for {minutes:g} min (before their first step {START_TIMES * minutes:g} min) start "
        "again from the last checkpoint (--hang-minutes)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.watching.metrics import exported
    from cardialign.cluster.watching.utilisation import counted
    from cardialign.pretrain.config import load_config

    config = load_config(args.recipe, overrides(args))
    if args.trust_run_dir:
        from cardialign.pretrain.run.trust import TRUST

        os.environ[TRUST] = "1"
    with (
        exported(args.run_dir, config.name, args.metrics_port, args.metrics_host) as metrics,
        counted(config, args.run_dir, args.peak_tflops),
    ):
        from cardialign.cluster.pages.report import write_report
        from cardialign.cluster.runs import lifecycle
        from cardialign.cluster.runs.placement import placement_of
        from cardialign.cluster.runs.starts import given_command

        if metrics is not None:
            sys.stderr.write(f"metrics  {metrics}\n")
        sys.stderr.write(f"hangs    {_hangs(args.hang_minutes)}\n")
        result = lifecycle.run(
            config,
            args.run_dir,
            lifecycle.Tracking(
                args.tracking_uri, args.experiment, args.tracking_optional, given_command(), write_report
            ),
            workers=args.workers,
            address=args.address,
            register_as=args.register,
            resume=args.resume or "same",
            placement=placement_of(args),
        )
    return result if metrics is None else {**result, "metrics": metrics}
