"""The cells of one study, made by any number of processes that were started on the same folder.

Each takes the next cell that is neither finished nor held by another, and ends when there is none left to take. A cell
is held by the lock of its folder, which dies with its process. The tables are written one at a time, each of all that
is finished by then: the one of the process that ends last is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.cluster.studies.budget import Budget
from cardialign.cluster.studies.cells import origin_of_cell, run_cell
from cardialign.cluster.studies.design import Cell, Design
from cardialign.cluster.studies.origin import Origin
from cardialign.cluster.studies.outcome import NotLearnt, Outcome, Setting, check_costs, finished, not_learnt
from cardialign.cluster.studies.ray_cells import StudyJob, on_ray
from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.lock import HeldError, locked_run

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)
CELLS, FLOOR_CELLS, TABLE = "cells", "floors", "table.json"
WAIT_SECONDS, LOOK_SECONDS = 900.0, 0.2


@dataclass(frozen=True)
class OnRay:
    """Cells as tasks of the Ray at `address` (None: one of this machine), so many at a time (0: all that fit)."""

    address: str | None
    workers: int


def on_ray_of(args: argparse.Namespace) -> OnRay | None:
    """What --address and --workers ask for; None: one cell after the other, here."""
    if args.address is None and args.workers is None:
        return None
    return OnRay(None if args.address == "local" else args.address, args.workers or 0)


@dataclass(frozen=True)
class Work:
    """A study that was checked: its cells, what each trains that has a recipe, and the folder that holds them."""

    design: Design
    cells: Sequence[Cell]
    setting: Setting
    shard_set: ShardSet
    out: Path
    configs: Mapping[str, RunConfig]
    _wanted: dict[str, Origin] = field(default_factory=dict)
    _found: dict[str, Outcome] = field(default_factory=dict)

    @property
    def floors(self) -> Path:
        return self.out / FLOOR_CELLS

    def look(self, cell: Cell) -> Outcome | None:
        """A cell that is finished by now. Raises as `finished`."""
        if cell.name not in self._found:
            found = finished(cell, self._folder(cell), self._origin(cell), self.setting.measures_of(cell))
            if found is None:
                return None
            self._found[cell.name] = check_costs(found, self._folder(cell))
        return self._found[cell.name]

    def not_learnt(self) -> dict[str, NotLearnt]:
        """The cells that collapsed, by name: what the alarm said."""
        found = {cell.name: not_learnt(self._folder(cell), self._origin(cell)) for cell in self.cells}
        return {name: error for name, error in found.items() if error is not None}

    def _origin(self, cell: Cell) -> Origin:
        if cell.name not in self._wanted:
            config = self.configs.get(cell.name)
            self._wanted[cell.name] = origin_of_cell(cell, config, self.setting, self.shard_set)
        return self._wanted[cell.name]

    def there(self) -> list[Outcome]:
        """All that are finished by now, whoever made them."""
        return [found for cell in self.cells if (found := self.look(cell)) is not None]

    def held(self) -> list[Cell]:
        """The cells that another process is making."""
        return [cell for cell in self.cells if self.look(cell) is None and _is_held(self._folder(cell))]

    def make(self, budget: Budget | None = None, ray: OnRay | None = None) -> Iterator[Outcome]:
        """Every cell that is free, as it ends; none is begun once those made here have spent the budget.

        One that collapses is left, here and later. Raises as `run_cell` and `on_ray`.
        """
        budget = Budget() if budget is None else budget

        def free() -> Iterator[Cell]:
            for cell in self.cells:
                if budget.spent:
                    return
                if self.look(cell) is None and not_learnt(self._folder(cell), self._origin(cell)) is None:
                    yield cell

        more = True
        while more:  # what another process gave up since is free
            more = False
            for cell in self._on_ray(free(), ray) if ray is not None else self._here(free()):
                found = self.look(cell)
                if found is not None:
                    more = True
                    budget.spend(found.facts)
                    yield found

    def _here(self, cells: Iterator[Cell]) -> Iterator[Cell]:
        for cell in cells:
            with contextlib.suppress(HeldError, NotLearnt):
                run_cell(cell, self.configs.get(cell.name), self.setting, self._folder(cell), self.shard_set)
                yield cell

    def _on_ray(self, cells: Iterator[Cell], ray: OnRay) -> Iterator[Cell]:
        given: list[Cell] = []

        def jobs() -> Iterator[StudyJob]:
            for cell in cells:
                given.append(cell)
                config = self.configs.get(cell.name)
                told = None if config is None else config.resolved()
                yield StudyJob(cell, told, self.setting, self._folder(cell).absolute())

        for done in on_ray(jobs(), ray.address, ray.workers):
            yield given[done]

    def _folder(self, cell: Cell) -> Path:
        return self.out / CELLS / cell.name


def check_folder(out: Path) -> None:
    """Raises UsageError for a folder that holds something, and no study: it would be strewn with cells."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and not there & {CELLS, FLOOR_CELLS, TABLE, LOCK}:
        raise UsageError(f"--out {out} holds something, and no study", "name a new folder, or that of a study")


def _is_held(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with locked_run(folder):
            return False
    except HeldError:
        return True


@contextlib.contextmanager
def one_at_a_time(out: Path) -> Iterator[None]:
    """For what takes seconds and concerns all processes of the study in `out`: the others wait.

    Raises HeldError when one holds it for a quarter of an hour.
    """
    end = time.monotonic() + WAIT_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_run(out, "stop that process, or give another --out"))
                break
            except HeldError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK_SECONDS)
        yield


def now_and_then(act: Callable[[], object]) -> Callable[[], None]:
    """`act`, but seldom enough that it costs at most a twentieth of the time."""
    due = 0.0

    def called() -> None:
        nonlocal due
        started = time.monotonic()
        if started >= due:
            act()
            ended = time.monotonic()
            due = ended + 20 * (ended - started)

    return called
