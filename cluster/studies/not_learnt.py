"""A cell whose training the collapse alarm ended: an outcome that the table names. It is kept, and not tried until it
succeeds: a seed that got several chances would make its variant look better than it is.
"""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.studies.origin import Origin
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json

NOT_LEARNT = "not_learnt.json"


class NotLearnt(UserError):  # noqa: N818  (an outcome of a cell, which its study goes on after)
    """The collapse alarm ended the training of a cell."""


def write_not_learnt(folder: Path, made_from: str, error: NotLearnt) -> None:
    """Keep what the alarm said beside the digest of what the cell follows from."""
    write_json(
        folder / NOT_LEARNT, {"made_from": made_from, "problem": error.problem, "remedy": error.remedy}, indent=1
    )


def not_learnt(folder: Path, origin: Origin) -> NotLearnt | None:
    """What ended the cell in `folder` when it was last made from the same; None where nothing did."""
    kept = read_json(folder / NOT_LEARNT)
    if not isinstance(kept, dict) or not origin.is_of(folder, kept.get("made_from")):
        return None
    return NotLearnt(str(kept.get("problem", ""))[:500], str(kept.get("remedy", ""))[:500])


def refuse_not_learnt(folder: Path, origin: Origin) -> None:
    """Raises NotLearnt for a cell that collapsed before."""
    if (error := not_learnt(folder, origin)) is not None:
        raise error
