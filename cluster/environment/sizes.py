"""How many workers a run may have: so many, or from so many to so many, whatever the cluster has room for."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass

MOST = 100_000


@dataclass(frozen=True)
class Sizes:
    """From `least` to `most` workers; one number where they are equal."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.elastic else str(self.most)

    @property
    def shown(self) -> int | str:
        """For a table: a number where it is one."""
        return str(self) if self.elastic else self.most

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def for_room(self, room: int) -> int:
        """The most workers that find a place where there is room for `room`; the fewest are waited for."""
        return min(self.most, max(self.least, room))


def sizes_of(workers: int | Sizes) -> Sizes:
    """What a caller of Python gives: a number, or sizes."""
    return workers if isinstance(workers, Sizes) else Sizes(workers, workers)


def sizes(text: str) -> Sizes:
    """The `type=` of an option: `4`, or `2-4`."""
    found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", text)
    shown = repr(text if len(text) <= 60 else f"{text[:60]}...")
    if found is None:
        raise ArgumentTypeError(f"{shown} is no number of workers; write for example 4, or 2-4 for what there is")
    least, most = int(found[1]), int(found[2] or found[1])
    if least < 1:
        raise ArgumentTypeError(f"{shown}: one worker is the least")
    if least > most:
        raise ArgumentTypeError(f"{shown} runs backwards; write {most}-{least}")
    if most > MOST:
        raise ArgumentTypeError(f"{shown} is more than {MOST} workers")
    return Sizes(least, most)
