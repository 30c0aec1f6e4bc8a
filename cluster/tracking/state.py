"""What `tracking.json` in a run directory holds: the store, the run id, what is known of the run, and the cursors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cardialign.cluster.tracking.names import safe, shorten
from cardialign.cluster.tracking.spool import Cursor
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes, write_json
from cardialign.data_shards.shown import public
from cardialign.pretrain.run.files import METRICS, SYSTEM, TRACKING
from cardialign.pretrain.run.layout import write_error


@dataclass
class TrackingState:
    """What `tracking.json` holds.

    tracking_uri without user and password (`address.public`). experiment: "" for that of the environment.
    home: the run directory that it was written in; "" in the state of an older release. datasets: as
    `groups.dataset` makes them. grouped: figures go out under the names of `groups.grouped`; a run that an older
    release began keeps its own, or each of its curves would be two.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    run_id: str = ""
    status: str = "RUNNING"
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    finished_at: float = 0.0
    home: str = ""
    datasets: list[dict[str, str]] = field(default_factory=list)
    grouped: bool = True
    cursors: dict[str, Cursor] = field(default_factory=lambda: {METRICS: Cursor(), SYSTEM: Cursor()})

    @classmethod
    def load(cls, run_dir: Path) -> TrackingState | None:
        """The state of the run in `run_dir`; None when it has none. Raises UserError for a damaged one."""
        path = run_dir / TRACKING
        try:
            values = parse_json(read_bytes(path))
            values["cursors"] = {name: Cursor(**cursor) for name, cursor in values["cursors"].items()}
            state = cls(**{"grouped": False, **values})
            state.tracking_uri = public(state.tracking_uri)  # an older release stored it as it was given
            whole = state._whole()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            whole, why = False, f": {error}" if isinstance(error, OSError) else ""
        else:
            why = ""
        if not whole:
            raise UserError(
                f"{path} cannot be read as the tracking state of a run{why}",
                "move it away: the run then goes into a new MLflow run, with all of its steps",
            )
        return state

    def _whole(self) -> bool:
        """Every value is of its kind."""
        words = [self.tracking_uri, self.experiment, self.run_name, self.run_id, self.status, self.home]
        pairs = [
            *self.parameters.items(),
            *self.tags.items(),
            *(pair for each in self.datasets for pair in each.items()),
        ]
        numbers = [self.finished_at, *self.final.values()]
        for cursor in self.cursors.values():
            numbers += asdict(cursor).values()
        return all(isinstance(word, str) for pair in [words, *pairs] for word in pair) and all(
            isinstance(number, int | float) for number in numbers
        )

    def copied_from(self, run_dir: Path) -> Path | None:
        """The run directory whose MLflow run this is, when `run_dir` is a copy of it; None for a run of its own.

        One that was moved keeps its MLflow run. Two that lie beside each other would write over each other's figures.
        """
        home = Path(self.home)
        try:
            if not self.home or os.path.samefile(home, run_dir):
                return None
            there = TrackingState.load(home)
        except (OSError, ValueError):  # not there, or no path at all
            return None
        return home if there is not None and there.run_id == self.run_id != "" else None

    def anew(self, **changes: Any) -> TrackingState:
        """The same training for an MLflow run that is still to be made: all of its steps go there."""
        return replace(self, run_id="", cursors={METRICS: Cursor(), SYSTEM: Cursor()}, grouped=True, **changes)

    def save(self, run_dir: Path) -> None:
        """Raises RunDirectoryError when the disk does not take it: that is no fault of the store."""
        self.home = str(run_dir.absolute())
        try:
            write_json(run_dir / TRACKING, asdict(self), indent=1)
        except OSError as error:
            raise write_error(run_dir, error) from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration -> dotted key -> text, as MLflow parameters want it.

    Keys may be words of a user's, such as the names of lead groups: each is written so that MLflow takes it.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        word = safe(str(key)).replace(".", "-x2e-")
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{word}."))
        else:
            flat[shorten(f"{prefix}{word}")] = value if isinstance(value, str) else json.dumps(value)
    return flat
