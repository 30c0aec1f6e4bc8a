"""How many records of a set found their row in a table: told for every join, warned of, and refused where next to
nothing fits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError

log = logging.getLogger(__name__)

WARN_BELOW = 0.95
"""Share of records with a row under which a join is warned of."""
STOP_BELOW = 0.05
"""Share under which a build stops, unless the option min_matched says otherwise."""
EXAMPLES = 3


@dataclass
class Match:
    """One join, counted along the walk.

    table: what is joined; rows: distinct ids in it. partial: the table is meant for a part of the records (labels,
    notes), so that the smaller of both sides is what should fit.
    """

    role: str
    table: str
    rows: int
    partial: bool = False
    row_names: Sequence[str] = ()
    records: int = 0
    matched: int = 0
    without: list[str] = field(default_factory=list)

    def add(self, record: str, found: bool) -> None:
        self.records += 1
        self.matched += found
        if not found and len(self.without) < EXAMPLES:
            self.without.append(record)

    def add_all(self, records: Sequence[str], found: Sequence[bool]) -> None:
        """A stretch of records at once."""
        self.records += len(records)
        matched = sum(found)
        self.matched += matched
        if matched < len(records) and len(self.without) < EXAMPLES:
            without = (record for record, there in zip(records, found, strict=True) if not there)
            self.without += [name for name, _ in zip(without, range(EXAMPLES - len(self.without)), strict=False)]

    @property
    def share(self) -> float:
        of = min(self.records, self.rows) if self.partial else self.records
        return min(self.matched / of, 1.0) if of else 1.0

    def facts(self) -> dict[str, Any]:
        """For manifest and summary."""
        return {"table": self.table, "matched": self.matched, "of": self.records, "rows": self.rows}


def judge(source: str, match: Match, stop_below: float) -> None:
    """Tell how much matched. Raises DataError where it is less than the share `stop_below`."""
    said = f"{match.matched} of {match.records} records have a row in {match.table}, which names {match.rows}"
    names = f"records without one are named like {_listed(match.without)}"
    if match.row_names:
        names += f"; the rows are named like {_listed(match.row_names)}"
    if match.share < stop_below:
        raise DataError(
            f"{source}: the {match.role} do not fit: {said}; {names}",
            f"correct the ids in {match.table}, or build with --min-matched 0 to go on without what does not fit",
        )
    level = logging.WARNING if match.share < WARN_BELOW else logging.INFO
    log.log(level, "join source=%s of=%s: %s%s", source, match.role, said, f"; {names}" if match.without else "")


@dataclass
class Agreement:
    """Whether a table says the same of its records as another one, counted along the walk.

    what: the thing that both say (`ecg_time`); table, other: what says it; examples: what they say of a few records.
    """

    what: str
    table: str
    other: str
    records: int = 0
    agreeing: int = 0
    examples: list[str] = field(default_factory=list)


def judge_agreement(source: str, found: Agreement, stop_below: float) -> None:
    """Warn where two tables do not say the same of a record. Raises DataError where fewer than the share `stop_below`
    agree: a table whose rows came out of order gives every record what is another's."""
    if found.agreeing == found.records:
        return
    said = (
        f"{found.what}: {found.table} and {found.other} disagree on {found.records - found.agreeing} of the "
        f"{found.records} records that both give one; {'; '.join(found.examples)}"
    )
    if found.agreeing < stop_below * found.records:
        raise DataError(
            f"{source}: {said}",
            f"take {found.other} as it was published; a build goes on with --min-matched 0, if {found.what} alone is "
            "not right",
        )
    log.warning("join source=%s of=%s; is each row of %s that of its record?", source, said, found.other)


def contradictions(source: str, table: Path | str, role: str, ids: Sequence[str], number: int) -> None:
    """Warn of ids that stand in several rows which do not say the same."""
    if number:
        log.warning(
            "join source=%s of=%s: %d ids stand in several rows of %s that say different things, the first of each "
            "counts: %s",
            source,
            role,
            number,
            Path(table).name,
            _listed(ids),
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:60]) for name in list(names)[:EXAMPLES]) or "none"
