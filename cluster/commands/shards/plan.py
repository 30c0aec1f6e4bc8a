"""`cardialign shards plan`: what `shards build` would make of a data set, from its first records; nothing is kept.

It is a build of so few into a folder that is deleted: it refuses, warns and counts as the build does.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import picture_to_write, whole_number
from cardialign.cluster.cli.progress import Progress, two_stages
from cardialign.cluster.cli.source_options import add_reader_options, add_source, asked_source, in_words_of_flags
from cardialign.cluster.commands.shards.stats import figures_of_records
from cardialign.cluster.pages.code_names import add_names
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from cardialign.data_shards.record import EcgRecord
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.sources.base import Source

DRAWN = 3
SHOWN = 3
"""Records that were turned away and are named, of each reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--limit", type=whole_number(1), default=100, metavar="N", help="records to read (default 100)")
    parser.add_argument(
        "--out",
        type=picture_to_write,
        metavar="FILE.png",
        help=f"also draw {DRAWN} of them, with what is known",
    )
    parser.add_argument(
        "--count", action="store_true", help="walk the whole data set: how many records, how many bytes"
    )
    add_reader_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    with in_words_of_flags(args.source), _each_told_once():
        return _planned(args)


@contextmanager
def _each_told_once() -> Iterator[None]:
    """A data set that is walked twice, for its first records and to count them all, warns of the same twice: in here a
    line goes out once. One whose figures are others by then is another line."""
    told: set[tuple[str, str]] = set()

    def fresh(handler: logging.Handler, line: logging.LogRecord) -> bool:
        key = (f"{id(handler)} {line.name}", line.getMessage())
        before = key in told
        told.add(key)
        return not before

    handlers = list(logging.getLogger().handlers)
    filters = [partial(fresh, handler) for handler in handlers]
    for handler, each in zip(handlers, filters, strict=True):
        handler.addFilter(each)
    try:
        yield
    finally:
        for handler, each in zip(handlers, filters, strict=True):
            handler.removeFilter(each)


def _planned(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.checks.statistics import set_statistics
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.shard_set.layout import REJECTS
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    source = asked_source(args, args.root)
    plan = SetPlan(SignalSpec(args.sampling_rate, args.seconds), folds=args.folds, limit=args.limit)
    with tempfile.TemporaryDirectory(prefix="cardialign-plan-") as scratch:
        folder = Path(scratch) / "set"
        with Progress("shards plan: listing records") as listing, Progress("shards plan") as building:
            try:
                build_shards(source, folder, plan, workers=1, progress=two_stages(listing, building))
            except DataError as error:
                if not (folder / REJECTS).is_file():
                    raise
                problem = error.problem.replace(str(folder), str(args.root))
                raise DataError(problem, "correct the data set or the options, and plan again") from None
        made = ShardSet.open(folder)
        found = set_statistics(made) | {"turned_away": _turned_away(folder / REJECTS)}
        picture = None if args.out is None else _draw(made, args.out)
    add_names(found)
    for name in ("path", "fingerprint", "shards"):  # of a folder that is no more
        del found[name]
    whole = _whole(source, found) if args.count else None
    return {**found, "whole": whole, "picture": picture}


def _whole(source: Source, found: dict[str, Any]) -> dict[str, Any]:
    """A walk over all of it: how many records, how many of them each table knows, and how much the set will hold if
    all of them are like those that were read."""
    entries = 0
    with Progress("shards plan: counting records") as progress:
        for _ in source.entries():
            entries += 1
            progress(entries)
    read = found["records"] + sum(found["rejected"].values())
    joins: dict[str, dict[str, Any]] = source.describe().get("joins", {})
    return {
        "entries": entries,
        "records": round(entries * found["records"] / read),
        "bytes": round(entries * found["bytes"] / read),
        "joins": {role: f"{each['matched']} of {each['of']}" for role, each in joins.items()},
    }


def _turned_away(rejects: Path) -> dict[str, list[str]]:
    """Reason -> the first records that were turned away for it, each with what was found."""
    named: dict[str, list[str]] = {}
    with rejects.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            said = named.setdefault(row["reason"], [])
            if len(said) < SHOWN:
                said.append(f"{row['key']}: {row['detail']}")
    return named


def _draw(made: ShardSet, path: Path) -> str:
    """The first record, one from the middle and the last, one below the other."""
    from cardialign.data_shards.signal.side_by_side import Panel, draw_side_by_side

    last = len(made) - 1
    panels = []
    for row in sorted({0, last // 2, last}):
        record = made.read_record(row)
        panels.append([Panel(record, record.key, _stated(record))])
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(draw_side_by_side(panels, path))


def _stated(record: EcgRecord) -> list[str]:
    """What the file says beside what stands in the picture."""
    noted = {"sampling_rate": record.sampling_rate, **record.extra}
    return ["the file says: " + ", ".join(f"{name} {shown(str(value))}" for name, value in noted.items())]


def summary(result: dict[str, Any]) -> list[str]:
    said: dict[str, Any] = {name: result[name] for name in ("source", "records", "patients", "rejected")}
    said |= {f"  {reason}": "; ".join(records) for reason, records in result["turned_away"].items()}
    said |= figures_of_records(result)
    said |= {"quality": result["quality"], "picture": result["picture"]}
    if result["whole"] is not None:
        said["the whole, if like these"] = result["whole"]
    return [*aligned(said), "nothing was kept: `shards build` with the same words and --out FOLDER makes the set"]
