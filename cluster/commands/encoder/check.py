"""`cardialign encoder check`: each way into an exported encoder against the ten ECGs that lie in its folder.

Every file is compared with its digest first. A way that this machine cannot go (no program in the folder, no
scikit-learn here) is named, and no mistake.
"""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import existing_folder, place
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=place, help="folder that `export` or `registry pull` wrote")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from cardialign.cluster.registry.pyfunc.door import MLFLOW, through_mlflow
    from cardialign.pretrain.export.doors.check import TOLERANCE, check_doors

    if str(args.folder).startswith("models:/"):
        from cardialign.data_shards.errors import UsageError

        raise UsageError(
            f"{args.folder} is in the registry, not a folder",
            f"fetch it first: cardialign registry pull {args.folder} FOLDER",
        )
    existing_folder(args.folder, "exported encoder", "give the folder that `export` or `registry pull` wrote")
    digest, doors = check_doors(args.folder, {MLFLOW: through_mlflow})
    return {
        "encoder": digest,
        "tolerance": TOLERANCE,
        "doors": [asdict(each) for each in doors],
        "exit_code": FAILED if any(each.wrong for each in doors) else DONE,
    }


def summary(result: dict[str, Any]) -> list[str]:
    lines = [f"encoder {result['encoder']}", f"{'way in':22s}{'records':>8s}{'largest difference':>20s}"]
    for each in result["doors"]:
        if each["closed"]:
            lines.append(f"{each['name']:22s}not opened: {each['closed']}")
            continue
        difference = "-" if each["difference"] is None else f"{each['difference']:.1e}"
        lines.append(f"{each['name']:22s}{each['records']:>8d}{difference:>20s}")
        lines += [f"  - {each['wrong']}"] if each["wrong"] else []
    return lines
