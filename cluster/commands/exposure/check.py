"""`cardialign exposure check`: does a proof of `exposure prove` hold against the root of a certificate?

Needs neither the export nor a network.
"""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import place
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.files import is_sha256, read_json_object
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("proof", type=place, help="file of `cardialign exposure prove --out`")
    parser.add_argument("--root", required=True, metavar="HEX", help="of the certificate, from whom you trust")
    parser.add_argument(
        "--salt-file", type=place, metavar="FILE", help="the certificate's salt: then absence is checked by name, too"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.export.exposure.proof import check

    if not is_sha256(args.root):
        raise UsageError("--root is not 64 hexadecimal digits", "copy it from the certificate")
    salt = None if args.salt_file is None else Secret.of_file(args.salt_file, "--salt-file")
    try:
        values = read_json_object(args.proof)
    except (OSError, ValueError) as error:
        raise DataError(f"{args.proof} is no proof that can be read: {error}", "ask for a new one") from None
    found = check(values, args.root, salt)
    facts = values["facts"]
    told = [{"kind": e.kind, "name": e.name, "in_training": e.present, "named": e.named} for e in found]
    known = {key: facts[key] for key in ("encoder", "recipe", "code", "training", "records_are", "unknown")}
    return {"root": args.root, **{key: known[key] for key in known if key in facts}, "shown": told}


def summary(result: dict[str, Any]) -> list[str]:
    lines = [f"the proof holds against {result['root']}", f"encoder {result['encoder']}"]
    for each in result["shown"]:
        word = f"was {result['records_are']}" if each["in_training"] else "is not in the certificate"
        doubt = "" if each["named"] else ", if the tag is its own: --salt-file shows that"
        lines.append(f"{each['kind']} {shown(each['name'])}: {word}{doubt}")
    return lines + [f"may be more: {shown(why)}" for why in result["unknown"]]
