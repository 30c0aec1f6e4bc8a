"""`cardialign bench kernels`: speed and memory of the operations that carry a training step.

What PyTorch offers for the same is measured beside them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import amount, whole_number
from cardialign.cluster.cli.streams import tell

STEP_RECIPES = {"cpu": "cardialign-demo", "cuda": "cardialign-base"}
"""Whose optimizer step belongs to the figures of a device."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="measure only there (default: the CPU, and CUDA where there is one)"
    )
    parser.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help="only contrastive, ranks, patch-embed, attention or step; may be repeated (default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no memory: a look in seconds (default: minutes)"
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        default=1,
        metavar="N",
        help="CPU threads (default 1: times are CPU milliseconds)",
    )
    parser.add_argument(
        "--seconds",
        type=amount,
        metavar="S",
        help="at most so many per case, compiling not counted (default: each case's own, to 15)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the page that kernels/benchmarks/FIGURES.md holds"
    )
    parser.add_argument(
        "--write-dispatch", metavar="FILE", help="on a GPU: where the kernels won, for CARDIALIGN_TRITON=FILE"
    )
    parser.add_argument(
        "--step", metavar="RECIPE", help="measure one optimizer step of a recipe instead; on a CPU only cardialign-demo"
    )
    parser.add_argument(
        "--batch",
        type=whole_number(2, 1_000_000),
        metavar="N",
        help="records per step (default: the recipe's, 32 on a CPU)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of a step: override a key of the recipe"
    )
    parser.add_argument("--profile", action="store_true", help="with --step: where the time goes, by operator")


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from cardialign.data_shards.errors import UsageError

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA device is usable here",
            "measure with --device cpu, or run on a machine with a GPU and a CUDA build of PyTorch",
        )
    names = [args.device] if args.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if args.write_dispatch and names[-1] != "cuda":
        raise UsageError(
            "--write-dispatch needs figures of a GPU", "run it on a machine with a GPU and a CUDA build of PyTorch"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        if args.step is not None:
            from cardialign.pretrain.benchmarks.step import measure_step

            rounds = 3 if args.quick else 10
            device = torch.device(names[-1])
            step = measure_step(
                args.step, device, overrides=args.set, batch=args.batch, rounds=rounds, profile=args.profile
            )
            return {"step": {**step, **_target(step, device)}}
        return _measured([torch.device(name) for name in names], args)
    finally:
        torch.set_num_threads(before)


def _target(step: dict[str, Any], device: Any) -> dict[str, str]:
    """What is promised about this step, and whether this one keeps it."""
    from cardialign.kernels.benchmarks.targets import outcomes

    if step["recipe"] != STEP_RECIPES["cuda"]:
        return {}
    promise = outcomes({"devices": [{"device": device.type}], "rows": [], "steps": [step]})[-1]
    return {"target": f"{promise.what}: {promise.verdict}"}


def _measured(devices: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.errors import UsageError
    from cardialign.kernels.benchmarks.cases import MODULES
    from cardialign.kernels.benchmarks.dispatch import dispatch_table
    from cardialign.kernels.benchmarks.table import measured_report

    known = [*MODULES, "step"]
    unknown = sorted(set(args.op or ()) - set(known))
    if unknown:
        raise UsageError(f"--op {', '.join(unknown)} is not an operation", f"choose from {', '.join(known)}")
    asked = args.op or known
    figures = measured_report(devices, args.quick, [op for op in asked if op != "step"], _say, args.seconds or math.inf)
    figures["only"] = args.op or []
    figures["steps"] = [_step(device, args) for device in devices] if "step" in asked else []
    if args.write_dispatch:
        try:
            Path(args.write_dispatch).write_text(json.dumps(dispatch_table(figures), indent=2) + "\n")
        except ValueError as error:
            raise UsageError(str(error), "leave out --write-dispatch, or measure more operations") from error
    return {"markdown": args.markdown, **figures}


def _step(device: Any, args: argparse.Namespace) -> dict[str, Any]:
    """One optimizer step of the device's recipe, or why it could not be measured.

    A text encoder that is not on this machine is such a reason.
    """
    from cardialign.data_shards.errors import UserError
    from cardialign.pretrain.benchmarks.step import measure_step

    recipe = STEP_RECIPES[device.type]
    _say(f"{device.type} one optimizer step of {recipe}")
    try:
        return measure_step(recipe, device, overrides=args.set, batch=args.batch, rounds=3 if args.quick else 10)
    except (UserError, ImportError) as error:
        return {"recipe": recipe, "device": device.type, "note": str(error)}


def _say(line: str) -> None:
    tell(line + "\n")


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.kernels.benchmarks.table import markdown, plain

    if "step" in result:
        figures = dict(result["step"])
        profile = figures.pop("profile", None)
        return aligned(figures) + ([] if profile is None else ["", *profile.splitlines()])
    return markdown(result) if result["markdown"] else plain(result)
