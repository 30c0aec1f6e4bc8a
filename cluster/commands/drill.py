"""`cardialign drill`: faults against a tiny run, on this machine or on a cluster, and a table of what became of it."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import place_to_write, whole_number
from cardialign.cluster.cli.streams import tell
from cardialign.cluster.drills import DRILLS, drill_of
from cardialign.data_shards.errors import UsageError

SOAK = "soak"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills of --list (default: all), or soak")
    parser.add_argument("--list", action="store_true", help="name every drill and its promise, and end")
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="on the Ray cluster there (auto, ray://host:10001), with --out on storage that every node sees; default: "
        "a local Ray for each run",
    )
    parser.add_argument(
        "--out",
        type=place_to_write,
        help="folder of the runs, kept when a promise is broken (default: a temporary folder)",
    )
    parser.add_argument(
        "--faults",
        type=whole_number(1),
        default=200,
        metavar="N",
        help="of `drill soak`: random kills, stops, bit flips, outages against one run on this machine (default 200)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="where faults fall (default 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if SOAK in args.names and len(args.names) > 1:
        raise UsageError("drill: soak is tried alone", "give it a command of its own")
    unknown = [name for name in args.names if name not in (*DRILLS, SOAK)]
    if unknown:
        raise UsageError(f"drill: no drill is called {', '.join(unknown)}", f"there are: {', '.join((*DRILLS, SOAK))}")
    names = args.names or list(DRILLS)
    if args.list:
        found = {name: drill_of(name) for name in DRILLS if name in names}
        return {
            "_list": True,
            "drills": [{"name": n, "fault": d.fault, "promise": d.promise} for n, d in found.items()],
        }
    if args.address is not None and args.out is None:
        raise UsageError("drill: --address wants --out", "give a folder on storage that every node of the cluster sees")
    from cardialign.cluster.drills.ground import Ground
    from cardialign.cluster.drills.try_all import try_all, try_soak

    def say(line: str) -> None:
        tell(line + "\n")

    with _folder(args.out) as folder:
        ground = Ground(folder, args.address, args.seed)
        return try_soak(ground, args.faults, say) if names == [SOAK] else try_all(names, ground, say)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="drill-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def summary(result: dict[str, Any]) -> list[str]:
    if result.get("_list"):
        width = max(len(each["name"]) for each in result["drills"])
        return [f"{each['name']:<{width}}  {each['fault']}: {each['promise']}" for each in result["drills"]]
    from cardialign.cluster.drills.try_all import table

    return table(result)
