"""Drills one after the other, and their table."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from cardialign.cluster.drills import DRILLS, drill_of
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.environment.versions import versions
from cardialign.data_shards.errors import DONE, FAILED, UserError

log = logging.getLogger(__name__)

HEAD = ("fault", "detected after", "steps lost", "back after", "trace equal", "verdict")


def try_one(name: str, run: Callable[[Ground], Outcome], ground: Ground) -> Outcome:
    """One drill. Whatever goes wrong in it breaks its promise: the outcome says what."""
    started = time.monotonic()
    outcome = Outcome()
    try:
        outcome = run(ground)
    except SkippedError as error:
        outcome.verdict, outcome.note = "skipped", str(error)
    except BrokenError as error:
        outcome = error.outcome or outcome
        outcome.verdict, outcome.note = "broken", str(error)
    except UserError as error:
        outcome.verdict, outcome.note = "broken", f"{error.problem} {error.remedy}".strip()
    finally:
        ground.close()
    outcome.seconds = time.monotonic() - started
    log.info("drill=%s verdict=%s seconds=%.1f note=%s", name, outcome.verdict, outcome.seconds, outcome.note)
    return outcome


def try_all(names: Sequence[str], ground: Ground, say: Callable[[str], None]) -> dict[str, Any]:
    """The drills of these names, in the order of the table; `exit_code` 1 when a promise is broken."""
    rows = []
    for name in [each for each in DRILLS if each in names]:
        drill = drill_of(name)
        outcome = try_one(name, drill.run, ground)
        say(f"{outcome.verdict:<8} {name}  {outcome.seconds:.0f} s  {outcome.note}")
        rows.append({"name": name, "fault": drill.fault, "promise": drill.promise, **asdict(outcome)})
    return _told(rows, ground)


def try_soak(ground: Ground, faults: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Random faults against one run, as one row."""
    from cardialign.cluster.drills.soak import soak

    outcome = try_one("soak", lambda where: soak(where, faults, say), ground)
    promise = "However often it is hit, the run ends with the undisturbed one's trace and digest."
    return _told([{"name": "soak", "fault": f"{faults} random faults", "promise": promise, **asdict(outcome)}], ground)


def _told(rows: list[dict[str, Any]], ground: Ground) -> dict[str, Any]:
    broken = sum(row["verdict"] == "broken" for row in rows)
    if not broken:
        ground.clear()
    used = {name: number for name, number in versions().items() if name in ("cardialign", "ray", "torch", "deepspeed")}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "host": platform.node(),
        "seed": ground.seed,
        "versions": {"python": platform.python_version(), **used},
        "drills": rows,
        "kept": sum(row["verdict"] == "kept" for row in rows),
        "broken": broken,
        "skipped": sum(row["verdict"] == "skipped" for row in rows),
        "exit_code": FAILED if broken else DONE,
    }


def table(result: dict[str, Any]) -> list[str]:
    """The outcome of `try_all` as Markdown that a terminal shows in columns, and below it what was not kept."""
    rows = [HEAD, *((row["fault"], *_cells(row)) for row in result["drills"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in result["drills"]:
        if row["verdict"] != "kept" or row["note"]:
            lines.append(f"{row['name']}: {row['note']}")
        if row["verdict"] == "broken":
            lines.append(f"  promised: {row['promise']}")
    numbers = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines.append(
        f"{result['kept']} kept, {result['broken']} broken, {result['skipped']} skipped; {result['date']}, "
        f"seed {result['seed']}; {numbers}"
    )
    return lines


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    equal = {None: "-", True: "yes", False: "no"}[row["equal"]]
    lost = "-" if row["lost"] is None else str(row["lost"])
    return seconds(row["detected"]), lost, seconds(row["back"]), equal, row["verdict"]
