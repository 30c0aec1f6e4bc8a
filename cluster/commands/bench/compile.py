"""`cardialign bench compile`: what the compiler makes of every Triton kernel for Ampere and Hopper; needs no GPU."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.progress import Progress
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch", type=int, choices=(80, 90), help="only this compute capability, times ten (default: both)"
    )
    parser.add_argument("--name", default="", help="only variants whose name contains this")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.errors import UserError
    from cardialign.kernels.triton_support.compile_check import all_variants, compile_variant, table

    results = []
    try:
        wanted = [
            variant
            for variant in all_variants()
            if args.name in variant.name and args.arch in (None, variant.architecture)
        ]
        with Progress("bench compile", len(wanted)) as progress:
            for done, variant in enumerate(wanted, 1):
                results.append(compile_variant(variant))
                progress(done)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"the kernels cannot be compiled here: {error}", "install triton (Linux), and unset TRITON_INTERPRET"
        ) from error
    refused = {
        f"{r.variant.name} sm_{r.variant.architecture}": r.faults for r in results if r.faults and r.variant.dispatched
    }
    return {
        "variants": len(results),
        "refused": refused,
        "table": table(results),
        "exit_code": DONE if results and not refused else FAILED,
    }


def summary(result: dict[str, Any]) -> list[str]:
    if not result["variants"]:
        return ["no kernel variant has such a name; leave --name and --arch out to see all"]
    return [*result["table"], "", "read from compiled code; not measured on a GPU"]
