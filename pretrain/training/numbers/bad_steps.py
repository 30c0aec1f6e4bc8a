"""Steps whose numbers went bad: found by all ranks together, not applied, and written down with their batch.

A step is bad when its loss or its gradient is not finite on any rank, or when the norm of the gradient lies above
`training.gradient_limit`. Its update is left out. A run may leave out `training.bad_steps` of them; the next one ends
it at its last checkpoint. `bad_steps/STEP.json` says which records every rank had, in which shards, and what their
samples look like; what a report says is not in it. `cardialign replay RUN STEP` makes the step again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import TrainingConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import BAD_STEPS
from cardialign.pretrain.training.alarms import NOT_FINITE_REMEDY, CollapseError
from cardialign.pretrain.training.collectives import highest, on_rank_zero
from cardialign.pretrain.training.engine import Workers, optimizer_step

log = logging.getLogger(__name__)

Kind = Literal["loss", "gradient", "spike"]


def bad_step_file(run_dir: Path, step: int) -> Path:
    return run_dir / BAD_STEPS / f"{step}.json"


class BadSteps:
    """One per rank, for a run that goes on from step `start`."""

    def __init__(self, run_dir: Path, training: TrainingConfig, workers: Workers, start: int) -> None:
        self.run_dir, self.workers, self.budget = run_dir, workers, training.bad_steps
        self.limit = math.inf if training.gradient_limit is None else training.gradient_limit
        self.skipped: int = on_rank_zero(partial(_skipped, run_dir, start))
        self._buffers: dict[str, Tensor] = {}

    def begin(self, engine: Any) -> None:
        """Before the forward of a step: what that changes beside gradients can be put back."""
        if self.budget:
            self._buffers = {name: buffer.detach().clone() for name, buffer in engine.module.named_buffers()}

    def finite_everywhere(self, loss: float) -> bool:
        """Whether no rank has a loss that is not finite. A collective."""
        return highest([int(not math.isfinite(loss))], self.workers.device)[0] == 0

    def update(self, engine: Any, finite: bool) -> tuple[float, Kind | None]:
        """Apply the update unless the step is bad; the norm of its gradient, and why it is bad. The same on all ranks.

        A gradient that is not finite may have the norm inf where DeepSpeed says no more.
        """
        norm = optimizer_step(engine, self.limit if finite else -math.inf)
        if finite and math.isfinite(norm) and norm <= self.limit:
            return norm, None
        if self._buffers:
            with torch.no_grad():
                for name, buffer in engine.module.named_buffers():
                    buffer.copy_(self._buffers[name])
        return norm, "loss" if not finite else "spike" if math.isfinite(norm) else "gradient"

    def settle(self, kind: Kind | None, about: dict[str, Any], mine: dict[str, Any], step: int) -> None:
        """Write a step down (kind None: it went well and was asked for), and leave it out when the budget allows.

        about: digest, loss and gradient_norm of the step; mine: `share_of` this rank. A collective. Raises
        CollapseError on every rank when the budget is used up.
        """
        skipped = kind is not None and self.skipped < self.budget
        where = self._write({"step": step, "reason": kind, "skipped": skipped, **about}, mine)
        if kind is None:
            return
        norm = about["gradient_norm"]
        said = {
            "loss": f"the loss is {about['loss']}",
            "gradient": f"the gradient norm is {norm}",
            "spike": f"the gradient norm is {norm:.6g}, above training.gradient_limit {self.limit:g}",
        }[kind]
        if not skipped:
            budget = f"; {self.skipped} steps were left out before (training.bad_steps)" if self.budget else ""
            raise CollapseError(
                f"step {step}: {said} (sample ids digest {about['digest']}){budget}",
                f"{NOT_FINITE_REMEDY}; {where} names its records, and `cardialign replay {self.run_dir} {step}` makes "
                "the step again",
            )
        self.skipped += 1
        log.warning("step=%d action=skip reason=%s left_out=%d of=%d", step, said, self.skipped, self.budget)

    def _write(self, about: dict[str, Any], mine: dict[str, Any]) -> Path:
        """A disk that does not take it is no reason to go another way."""
        everywhere: list[Any] = [None] * self.workers.world_size
        dist.all_gather_object(everywhere, mine)
        path = bad_step_file(self.run_dir, about["step"])
        if self.workers.rank == 0:
            fence.check(self.run_dir)
            values = _plain({**about, "world_size": self.workers.world_size, "ranks": everywhere})
            try:
                path.parent.mkdir(exist_ok=True)
                write_json(path, values, indent=1)
            except OSError as error:
                log.warning("step=%d action=not-written-down path=%s error=%s", about["step"], path, error)
        return path


def _skipped(run_dir: Path, start: int) -> int:
    """Steps up to `start` that the run left out; later ones are made again."""
    notes = [read_json(path) or {} for path in (run_dir / BAD_STEPS).glob("*.json")]
    return sum(bool(note.get("skipped")) and 0 < int(note.get("step", 0)) <= start for note in notes)


def share_of(
    rank: int, batch: Batch, shard_set: ShardSet | JoinedSets, features: Mapping[str, Tensor], loss: float
) -> dict[str, Any]:
    """What one rank says of a bad step: of each record its place, its samples in mV, and whether its features are
    finite."""
    ends = torch.zeros(len(batch.rows), dtype=torch.bool)
    for value in features.values():
        if value.ndim > 1 and value.shape[0] == len(batch.rows):
            ends |= ~torch.isfinite(value.detach().cpu().flatten(1)).all(1)
    records = []
    for at, row in enumerate(batch.rows):
        signal = batch.signal[at][batch.lead_mask[at]][:, : batch.valid_samples[at]]
        records.append(
            {
                "record": shard_set.key(int(row)),
                "row": int(row),
                "shard": shard_set.shard_names[int(shard_set.shard[row])],
                "report_number": int(batch.report[at]),
                "leads": int(batch.lead_mask[at].sum()),
                "samples": int(batch.valid_samples[at]),
                **_statistics(signal),
                "features_finite": not bool(ends[at]),
            }
        )
    return {"rank": rank, "loss": loss, "records": records}


def _statistics(signal: np.ndarray) -> dict[str, Any]:
    values = signal[np.isfinite(signal)].astype(np.float64)
    found: dict[str, Any] = {"not_finite": int(signal.size - values.size)}
    if values.size:
        found |= {
            "min_mv": float(values.min()), "max_mv": float(values.max()), "mean_mv": float(values.mean()),
            "std_mv": float(values.std()),
        }  # fmt: skip
    return found


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for are words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
