"""`cardialign bench kernels`: speed and memory of the operations that carry a training step, beside what PyTorch offers for the same."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="measure only there (default: the CPU, and CUDA where there is one)")
    parser.add_argument("--op", action="append", metavar="NAME", help="only contrastive, patch-embed or attention; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, no memory: a look in seconds")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1: times are CPU milliseconds)")
    parser.add_argument("--step", metavar="RECIPE", help="measure one optimizer step of a recipe instead; on a CPU only cardialign-demo")
    parser.add_argument("--batch", type=int, metavar="N", help="with --step: records per step (default: the recipe's, 32 on a CPU)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --step: override a key of the recipe")
    parser.add_argument("--profile", action="store_true", help="with --step: where the time goes, by operator")
    parser.add_argument("--markdown", action="store_true", help="print the tables to paste into a README")


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from data_shards.errors import UsageError

    if args.threads < 1:
        raise UsageError(f"--threads {args.threads} is not a number of threads", "give 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA device is usable here", "measure with --device cpu, or run on a machine with a GPU and a CUDA build of PyTorch"
        )
    names = [args.device] if args.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        if args.step is not None:
            from pretrain.benchmark_step import measure_step

            rounds = 3 if args.quick else 10
            device = torch.device(names[-1])
            return {"step": measure_step(args.step, device, overrides=args.set, batch=args.batch, rounds=rounds, profile=args.profile)}
        from kernels.benchmark import MODULES
        from kernels.benchmark_table import measured_report

        unknown = sorted(set(args.op or ()) - set(MODULES))
        if unknown:
            raise UsageError(f"--op {', '.join(unknown)} is not an operation", f"choose from {', '.join(MODULES)}")
        return {"markdown": args.markdown, **measured_report([torch.device(name) for name in names], args.quick, args.op)}
    finally:
        torch.set_num_threads(before)


def summary(result: dict[str, Any]) -> list[str]:
    from cluster.cli import aligned
    from kernels.benchmark_table import markdown, plain

    if "step" in result:
        figures = dict(result["step"])
        profile = figures.pop("profile", None)
        return aligned(figures) + ([] if profile is None else ["", *profile.splitlines()])
    return markdown(result) if result["markdown"] else plain(result)
