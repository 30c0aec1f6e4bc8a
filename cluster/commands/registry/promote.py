"""`cardialign registry promote`: point an alias at a version, through the gate where it is production's."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentTypeError
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri, place, whole_number
from cardialign.data_shards.errors import UsageError


def margin(text: str) -> float:
    """A difference of macro AUROC, from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"{text[:40]!r} is not a margin of macro AUROC; write a number from 0 to 1, like 0.01")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help="NAME@ALIAS or NAME/VERSION, for example my-encoder@candidate; or NAME VERSION")
    parser.add_argument("version", nargs="?", type=whole_number(1), help="version, where the name alone is given")
    parser.add_argument(
        "--to",
        "--alias",
        dest="alias",
        default="production",
        metavar="ALIAS",
        help="default production, which is gated; others are free unless something is required",
    )
    gate = parser.add_argument_group("the gate")
    gate.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="[KIND:]PROTOCOL:TASK",
        help="an evaluation that must be there (KIND zero-shot, or linear-probe with @PERCENT), beside those of the "
        "policy and of the model's tag gate.require; repeat for more",
    )
    gate.add_argument("--policy", type=place, metavar="FILE", help="YAML: require: [PROTOCOL:TASK, ...], margin: 0.01")
    gate.add_argument(
        "--margin",
        type=margin,
        help="refused when the upper bound of the paired difference to production lies below minus this (default 0)",
    )
    gate.add_argument("--acknowledge-contract", action="store_true", help="the signal contract may change")
    gate.add_argument(
        "--force", metavar="REASON", help="promote all the same; who, when, why and what was missing stay"
    )
    signed = parser.add_argument_group('signing (pip install "cardialign[sign]")')
    signed.add_argument("--sign", type=place, metavar="KEY", help="sign the encoder with this EC private key (PEM)")
    signed.add_argument(
        "--certificate",
        type=place,
        metavar="FILE",
        help="with --sign: the key's certificate, then those above it (PEM)",
    )
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.promotion import Demands, promote
    from cardialign.cluster.registry.signing import SigningKey

    reference = args.encoder
    if args.version is not None:
        if "@" in reference or "/" in reference.removeprefix("models:/"):
            raise UsageError("the version is given twice", "write NAME VERSION, NAME/VERSION or NAME@ALIAS")
        reference = f"{reference}/{args.version}"
    if args.certificate is not None and args.sign is None:
        raise UsageError("--certificate belongs to --sign", "add --sign KEY or leave it out")
    key = None if args.sign is None else SigningKey.open(args.sign, args.certificate)
    demands = Demands(tuple(args.require), args.margin, args.policy, args.acknowledge_contract, args.force, key)
    return promote(reference, args.alias, args.tracking_uri, demands)


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.data_shards.shown import shown

    before = "nothing" if result["before"] is None else f"version {result['before']}"
    lines = [f"{result['alias']} of {result['name']}: {before} -> version {result['version']}"]
    lines += [each["line"] for each in result["compared"]]
    lines += [f"note: {each}" for each in result["remarks"]]
    lines += [f"FORCED, missing: {each}" for each in result["forced"]]
    lines += [f"signed with the key whose public half has sha256 {result['signed']}"] if result["signed"] else []
    return [shown(line) for line in lines]
