"""The demo's page: figures of its run, pictures of unseen patients with the encoder's lead-group weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.pages.examples import different, draw_records
from cardialign.cluster.pages.run_page import Picture, write_run_page
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.files import parse_json, read_bytes, read_json
from cardialign.pretrain.run.files import CONFIG, RESULT

PICTURES = 3
SUMMARY = (
    "An ECG encoder, pretrained against machine reports of virtual patients, "
    "tells findings apart in patients it has never seen."
)


def _trace(run_dir: Path) -> list[dict[str, Any]]:
    from cardialign.pretrain.run.trace import read_trace

    return read_trace(run_dir)


def _pictures(out: Path) -> list[Picture]:
    """The first unseen records with different reports, through the pulled encoder."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.export.loaded import load_encoder

    shard_set = ShardSet.open(out / "unseen-shards")
    rows = different(shard_set, np.arange(len(shard_set)), PICTURES)
    return draw_records(load_encoder(out / "encoder"), shard_set, rows)


def _data(out: Path) -> list[dict[str, Any]]:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    rows = []
    for name, shards, cohort in (("training", "shards", "cohort"), ("unseen", "unseen-shards", "unseen-cohort")):
        counts = ShardSet.open(out / shards).manifest["counts"]
        findings = parse_json(read_bytes(out / cohort / "cohort.json")).get("records_per_finding", {})
        rows.append(
            {
                "name": name,
                "records": counts["records"],
                "patients": counts["patients"],
                "reports": counts["reports"],
                "findings": findings,
            }
        )
    return rows


def write_demo_page(out: Path, zero_shot: dict[str, Any], mlflow_command: str, commands: list[str]) -> Path:
    """Write `out/report.html` and return it."""
    run_dir = out / "run"
    result = read_json(run_dir / RESULT) or {}
    shown = {
        "steps": "Steps",
        "final_loss": "Final loss",
        "records_per_second": "Records per second",
        "data_wait_share": "Data wait share",
    }
    facts = {label: result[key] for key, label in shown.items() if key in result}
    state = run_state(run_dir)
    if state.mfu is not None:
        facts["Share of the devices' peak (MFU)"] = f"{100 * state.mfu:.3g} %"
    return write_run_page(
        out / "report.html",
        title="CardiAlign demo",
        run={
            "summary": SUMMARY,
            "facts": facts,
            "data": _data(out),
            "config": read_json(run_dir / CONFIG),
            "cause": state.cause,
        },
        trace=_trace(run_dir),
        zero_shot=zero_shot,
        baseline=zero_shot.get("baseline"),
        pictures=_pictures(out),
        commands={
            "MLflow UI": mlflow_command,
            **{f"Stage {number}": command for number, command in enumerate(commands, 1)},
        },
    )
