"""A run in the terminal: drawn and kept up to date where somebody looks, one line per change where it is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cardialign.cluster.cli.progress import clock
from cardialign.cluster.watching.state import OVER, RunState, run_state
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_SECONDS = 2.0
PLAIN_SECONDS = 10.0
"""How often a piped view says something when only the step has changed."""
NARROW = 40
"""Columns under which the values have no room beside their labels: words were broken letter by letter."""
COLOURS = {
    "running": "green", "finished": "green", "starting": "cyan", "stopped": "yellow", "interrupted": "yellow",
    "stalled": "red", "failed": "red",
}  # fmt: skip


def facts(state: RunState) -> dict[str, str]:
    """Label -> value of what is known of a run, in the order in which it is shown; safe on a terminal."""
    found: dict[str, str] = {
        "state": words_of(state.state, state.last_step_age_seconds, state.stop_asked),
        "step": _step(state),
    }
    if state.eta_seconds is not None:
        found["ETA"] = clock(state.eta_seconds)
    if state.loss is not None:
        found["loss"] = f"{state.loss:.4f}"
    if state.records_per_second is not None:
        found["records/s"] = f"{state.records_per_second:.4g}"
    if state.mfu is not None:
        found["MFU"] = f"{100 * state.mfu:.3g} %"
    if state.cause is not None:
        found["slow because"] = state.cause.line
        found["time"] = ", ".join(f"{word} {100 * share:.0f} %" for word, share in state.cause.shares.items())
    if state.data_wait:
        found["data, a step"] = waits_of(state.data_wait)
    if state.slowest_rank is not None:
        found["slowest rank"] = f"{state.slowest_rank['rank']} on {state.slowest_rank['host']}"
    if state.slowest_shard:
        found["slowest shard"] = state.slowest_shard
    if state.effective_negatives is not None:
        found["effective negatives"] = f"{state.effective_negatives:.1f}"
    if state.effective_rank is not None:
        found["effective rank"] = f"{state.effective_rank:.1f}"
    found["checkpoint"] = _checkpoint(state)
    found["restarts"] = str(len(state.restarts))
    if state.restarts:
        found["last restart"] = state.restarts[-1].cause
    if state.decisions:
        found["decided"] = state.decisions[-1].told()
    if state.failure is not None:
        found["failed with"] = str(state.failure.get("problem") or "an error that was not written down")
        found["remedy"] = str(state.failure.get("remedy") or "")
    return {label: shown(value) for label, value in found.items() if value}


def lines(state: RunState) -> list[str]:
    """The same as `label  value` lines under the name of the run."""
    told = facts(state)
    width = max(map(len, told))
    return [shown(state.name), *(f"{label:<{width}}  {value}" for label, value in told.items())]


def one_line(state: RunState) -> str:
    """The run in one line, as a log keeps it."""
    told = facts(state)
    words = [shown(state.name), told["state"], f"step {told['step']}"]
    words += [f"{label} {told[label]}" for label in ("ETA", "loss", "records/s", "checkpoint") if label in told]
    words += [told[label] for label in ("slow because", "failed with") if label in told]
    return "  ".join(words)


def draw(state: RunState, width: int = 80) -> RenderableType:
    """The same for `rich`: a panel with a bar, or on a terminal narrower than `NARROW` columns a line for each fact.
    Text of the run is shown as it is and never read as markup."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    colour = COLOURS.get(state.state, "white")
    name = Text(shown(state.name), overflow="fold")
    styles = {"state": colour, "slow because": "bold", "failed with": "red"}
    rows = [(label, Text(value, styles.get(label, ""))) for label, value in facts(state).items()]
    bar = ProgressBar(total=state.steps, completed=min(state.step, state.steps)) if state.steps else None
    if width < NARROW:
        lines = [Text.assemble((f"{label}: ", "dim"), value, overflow="fold") for label, value in rows]
        return Group(name, *([Padding(bar, 0)] if bar else []), *lines)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), value)
    parts: list[Any] = [Padding(bar, (0, 0, 1, 0)), table] if bar else [table]
    return Panel(Group(*parts), title=name, border_style=colour)


def watch(
    run_dir: Path,
    *,
    stream: TextIO | None = None,
    look: Callable[[], RunState] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> RunState:
    """Show the run until nothing more comes of it by itself, or Ctrl-C; returns what was seen last.

    On a terminal one view that is renewed; elsewhere a line when its state changes, and now and then in between.
    look: what is shown (default: `run_state(run_dir)`).
    """
    stream, look = stream or sys.stdout, look or (lambda: run_state(run_dir))
    if not getattr(stream, "isatty", lambda: False)():
        return _plain(stream, look, sleep, now)
    from rich.console import Console
    from rich.live import Live

    state, console = look(), Console(file=stream)
    with Live(draw(state, console.width), console=console, refresh_per_second=4) as live:
        while state.state not in OVER:
            sleep(LOOK_SECONDS)
            state = look()
            live.update(draw(state, console.width))
    return state


def _plain(
    stream: TextIO, look: Callable[[], RunState], sleep: Callable[[float], None], now: Callable[[], float]
) -> RunState:
    said, said_at = ("", -1), float("-inf")
    while True:
        state = look()
        mark = (state.state, state.step)
        if mark[0] != said[0] or (mark != said and now() - said_at >= PLAIN_SECONDS):
            stream.write(one_line(state) + "\n")
            stream.flush()
            said, said_at = mark, now()
        if state.state in OVER:
            return state
        sleep(LOOK_SECONDS)


def words_of(state: str, last_step_age_seconds: float | None, stop_asked: bool) -> str:
    """The state of a run in words that say what it means."""
    words = {
        "empty": "no run so far",
        "starting": "starting, no step so far",
        "stopped": "stopped at a checkpoint; the same command goes on",
        "interrupted": "interrupted, no driver holds it; the same command goes on",
    }.get(state, state)
    if state in ("running", "stalled") and last_step_age_seconds is not None:
        words += f", last step {clock(last_step_age_seconds)} ago"
    return words + (", asked to stop" if stop_asked else "")


def waits_of(data_wait: Mapping[str, float]) -> str:
    """What a step waits for its records, by cause; "" where that is not known."""
    causes = [name for name in ("queue", "read", "decode") if isinstance(data_wait.get(name), int | float)]
    return ", ".join(f"{name} {1000 * data_wait[name]:.3g} ms" for name in causes)


def _step(state: RunState) -> str:
    if not state.steps:
        return str(state.step)
    return f"{state.step} of {state.steps} ({100 * state.step / state.steps:.0f} %)"


def _checkpoint(state: RunState) -> str:
    last = state.checkpoint
    age = "" if last.age_seconds is None else f", {clock(last.age_seconds)} ago"
    pause = "" if last.pause_seconds is None else f", a pause of {last.pause_seconds:.3g} s"
    pause += "" if last.commit_seconds is None else f", committed after {last.commit_seconds:.3g} s"
    return f"step {last.step}{age}{pause}" if last.step else f"none so far{age.replace(' ago', '')}"
