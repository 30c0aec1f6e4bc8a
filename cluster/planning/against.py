"""What was predicted beside what a finished run measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import CONFIG, MEMORY, RESULT
from cardialign.pretrain.run.trace import read_trace

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

GONE = {"name", "data"}
"""Sections in which a plan and its run may differ: what a run is called, and where its shards lie."""

MEMORY_ROW = "memory of the fullest rank"


def finished_run(run_dir: Path) -> dict[str, Any]:
    """config, steps, total_steps, world_size, device and its name, and what was measured, of a finished run.

    bf16_kernels is None of a run on a GPU, and of an older release.

    Raises UserError for a folder that holds no run, and a run that is not finished.
    """
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints

    config = read_json(run_dir / CONFIG)
    if config is None:
        raise UserError(f"--against {run_dir} holds no run ({CONFIG})", "name the --run-dir of a finished run")
    memory, result, trace = read_json(run_dir / MEMORY), read_json(run_dir / RESULT), read_trace(run_dir)
    if memory is not None and not _of_this_form(memory):
        memory = None  # another release wrote it
    done = max((int(line["step"]) for line in trace), default=0)
    facts = memory or result or {}
    of = facts.get("total_steps")
    if of is None or not done == facts.get("steps") == of:  # or it was extended since
        planned = "" if of is None or done > of else f" of {of}"
        raise UserError(
            f"--against {run_dir} is not finished: its trace ends at step {done}{planned}",
            "let it end (the same command continues it), then compare",
        )
    rates = [line["records_per_second"] for line in trace if "records_per_second" in line]
    checkpoints = list_checkpoints(run_dir)
    newest = checkpoints[-1] if checkpoints else None
    ranks = memory["ranks"] if memory else []
    world = len(ranks) or (int(newest.summary.get("world_size", 1)) if newest else 1)
    return {
        "config": parse_config(config, f"configuration of {run_dir}"),
        "steps": done,
        "world_size": world,
        "device": memory["device"] if memory else None,
        "name": memory["name"] if memory else None,
        "memory": [int(rank["peak_bytes"]) for rank in ranks],
        "memory_meaning": memory["meaning"] if memory else None,
        "bf16_kernels": memory.get("bf16_kernels") if memory else None,
        "records_per_second": statistics.median(rates) if rates else None,
        "checkpoint_bytes": newest.bytes if newest else None,
    }


def _of_this_form(memory: dict[str, Any]) -> bool:
    ranks = memory.get("ranks")
    return (
        all(isinstance(memory.get(key), int) for key in ("steps", "total_steps"))
        and all(isinstance(memory.get(key), str) for key in ("device", "name", "meaning"))
        and isinstance(ranks, list)
        and all(isinstance(rank, dict) and isinstance(rank.get("peak_bytes"), int | float) for rank in ranks)
    )


def check_same_recipe(config: RunConfig, run: dict[str, Any], run_dir: Path) -> None:
    """Raises UserError that names the keys in which a run was of another recipe than the plan."""
    here, there = _flat(config.resolved()), _flat(run["config"].resolved())
    differ = [
        f"{key} is {here.get(key)}, the run had {there.get(key)}"
        for key in sorted({*here, *there})
        if key.split(".")[0] not in GONE and here.get(key) != there.get(key)
    ]
    if differ:
        more = f", and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UserError(
            f"--against {run_dir} is a run of another recipe: {'; '.join(differ[:5])}{more}",
            "leave --recipe and --set out: the run's own configuration is planned then",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def beside(plan: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of what, unit, predicted, measured (None: not measured) and their ratio."""
    memory = plan["memory_per_rank"][plan["zero_stage"]]["total_bytes"]
    rows = [
        ("optimizer steps", "", plan["duration"]["steps"], run["steps"]),
        (MEMORY_ROW, "MiB", memory / 2**20, _mib(max(run["memory"], default=None))),
        ("records per second", "", plan["step"]["records_per_second"], run["records_per_second"]),
        ("checkpoint", "MiB", plan["checkpoint_bytes"] / 2**20, _mib(run["checkpoint_bytes"])),
        ("sent by a rank per step", "MiB", _sent(plan), 0.0 if run["world_size"] == 1 else None),
    ]
    return [
        {"what": what, "unit": unit, "predicted": predicted, "measured": measured, "ratio": _ratio(predicted, measured)}
        for what, unit, predicted, measured in rows
    ]


def _sent(plan: dict[str, Any]) -> float:
    return float(sum(plan["exchanged_bytes_per_step"][plan["zero_stage"]].values()) / 2**20)


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _ratio(predicted: float | None, measured: float | None) -> float | None:
    return None if not measured or predicted is None else predicted / measured
