"""What `tracking.json` in a run directory holds: the store, the run id, what is known of the run, and the cursors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.tracking.spool import Cursor
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.files import METRICS, SYSTEM, TRACKING


@dataclass
class TrackingState:
    """What `tracking.json` holds."""

    tracking_uri: str
    experiment: str
    run_name: str
    run_id: str = ""
    status: str = "RUNNING"
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    finished_at: float = 0.0
    cursors: dict[str, Cursor] = field(default_factory=lambda: {METRICS: Cursor(), SYSTEM: Cursor()})

    @classmethod
    def load(cls, run_dir: Path) -> TrackingState | None:
        values = read_json(run_dir / TRACKING)
        if values is None:
            return None
        values["cursors"] = {name: Cursor(**cursor) for name, cursor in values["cursors"].items()}
        return cls(**values)

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / TRACKING, asdict(self), indent=1)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration -> dotted key -> text, as MLflow parameters want it."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
