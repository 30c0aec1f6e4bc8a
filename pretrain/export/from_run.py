"""A run directory -> an exported encoder: of its newest verified checkpoint, and without its shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.files import CONFIG, EXPORT, INITIALISED, START_NOTE
from cardialign.pretrain.run.integrity import refuse_to_replace, replace_export, verify_export
from cardialign.pretrain.training.checkpoints.files import list_checkpoints, problems
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.data import open_sets


def export_run(run_dir: Path | str, out: Path | str | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Export the encoder of the run in `run_dir` to `out` (default `run_dir/export`).

    Returns path, checkpoint, step, files, bytes, digest. Damaged checkpoints are passed over, not moved. An encoder
    that is replaced (`overwrite`) stays until the new one is whole.
    Raises UserError when the run has no verified checkpoint or `out` exists.
    """
    run_dir = Path(run_dir)
    latest = _latest_config(run_dir)
    checkpoint = next((c.path for c in reversed(list_checkpoints(run_dir)) if not problems(c.path)), None)
    if checkpoint is None:
        raise UserError(
            f"{run_dir} has no verified checkpoint",
            "train first: `cardialign pretrain`; see `cardialign checkpoints verify`",
        )
    out = Path(out) if out else run_dir / EXPORT
    refuse_to_replace(out, overwrite)
    state = TrainerState.read(checkpoint)
    config = parse_config(state.config, f"configuration of {checkpoint}")  # what trained it, whatever was asked since
    spec, shards_fingerprint = _trained_on(state, latest, run_dir, checkpoint)
    training = {
        "steps": state.step,
        "digest": state.digest,
        "selection_fingerprint": state.selection_fingerprint,
        "shards_fingerprint": shards_fingerprint,
        "world_size": state.world_size,
        **_start(run_dir),
    }
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    export_encoder(config, load_weights(checkpoint), fresh, training=training, spec=spec)
    replace_export(fresh, out)
    files = sorted(p for p in out.iterdir() if p.is_file())
    return {
        "path": str(out),
        "checkpoint": str(checkpoint),
        "step": state.step,
        "files": [p.name for p in files],
        "bytes": sum(p.stat().st_size for p in files),
        "digest": verify_export(out),
    }


def _start(run_dir: Path) -> dict[str, Any]:
    """Where the weights that the run started from come from, when it did not start from random ones."""
    note = read_json(run_dir / INITIALISED)
    if note is None:
        return {}
    return {"init_from": {**note.get("origin", {}), **(read_json(run_dir / START_NOTE) or {})}}


def _latest_config(run_dir: Path) -> RunConfig:
    path = run_dir / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{run_dir} holds no run ({CONFIG} is missing)", "give the --run-dir of `cardialign pretrain`")
    return parse_config(values, str(path))


def _trained_on(state: TrainerState, config: RunConfig, run_dir: Path, checkpoint: Path) -> tuple[SignalSpec, str]:
    """Signal spec and fingerprint of the run's shards: the checkpoint says them; for an old one the shards do."""
    if state.spec is not None and state.shards_fingerprint is not None:
        return state.spec, state.shards_fingerprint
    try:
        shards = open_sets(config.data)
    except UserError as error:
        raise UserError(
            f"checkpoint {checkpoint} was written before checkpoints knew which signals they were trained on, "
            f"and the run's shards cannot be asked: {error.problem}",
            f"put the place where the shards are now into {run_dir / CONFIG} and export again",
        ) from None
    return shards.spec, shards.fingerprint
