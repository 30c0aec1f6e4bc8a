"""A run's newest verified checkpoint -> an exported encoder beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from cardialign.cluster.runs.failure import CONFIG, EXPORT
from cardialign.cluster.tracking.spool import read_json
from cardialign.data_shards.errors import UserError


def export_run(run_dir: Path, out: Path | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Export the encoder of the run in `run_dir` to `out` (default `run_dir/export`). Returns path, step, files, bytes, digest.

    Damaged checkpoints are passed over, not moved. Raises UserError when the run has no verified checkpoint or `out` exists.
    """
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.export.integrity import refuse_to_replace, verify_export
    from cardialign.pretrain.export.write import export_encoder
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints, problems
    from cardialign.pretrain.training.checkpoints.state import TrainerState, load_weights
    from cardialign.pretrain.training.data import open_sets

    values = read_json(run_dir / CONFIG)
    if values is None:
        raise UserError(f"{run_dir} holds no run ({CONFIG} is missing)", "give the --run-dir of `cardialign pretrain`")
    checkpoint = next((c.path for c in reversed(list_checkpoints(run_dir)) if not problems(c.path)), None)
    if checkpoint is None:
        raise UserError(
            f"{run_dir} has no verified checkpoint",
            "train first: `cardialign pretrain`; see `cardialign checkpoints verify`",
        )
    out = out or run_dir / EXPORT
    refuse_to_replace(out, overwrite)
    config = parse_config(values, str(run_dir / CONFIG))
    state = TrainerState.read(checkpoint)
    shards = open_sets(config.data)
    training = {
        "steps": state.step,
        "digest": state.digest,
        "selection_fingerprint": state.selection_fingerprint,
        "shards_fingerprint": shards.fingerprint,
        "world_size": state.world_size,
    }
    fresh = out.with_name(f".{out.name}.{os.getpid()}")  # the old encoder stays until the new one is whole
    export_encoder(config, load_weights(checkpoint), fresh, training=training, spec=shards.spec)
    shutil.rmtree(out, ignore_errors=True)
    path = fresh.replace(out)
    files = sorted(p for p in path.iterdir() if p.is_file())
    return {
        "path": str(path),
        "checkpoint": str(checkpoint),
        "step": state.step,
        "files": [p.name for p in files],
        "bytes": sum(p.stat().st_size for p in files),
        "digest": verify_export(path),
    }
