"""What a run cost, from what its directory says: hours of devices, records per second, size, price, energy.

What was not measured is None, and said to be not measured. Hours are those of the steps that stand in the trace, times
the devices: without start-up, evaluations and steps that were lost.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.figures import read_figures
from cardialign.pretrain.run.files import COMPUTE, EXPORT, MEMORY
from cardialign.pretrain.run.integrity import CONTRACT

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)
CPU = "CPU"
MILLION = 1e6


@dataclass(frozen=True)
class Cost:
    """devices of `kind` (CPU: cores); hours of all of them together; records: that were trained on, repeats included.

    parameters: of the ECG encoder, trained_parameters: of all that trained; gflop: forward, of one record through the
    ECG encoder; train_gflop: both passes of the whole model, where the run counted it. kwh: None, not measured.
    """

    kind: str | None = None
    devices: int | None = None
    hours: float | None = None
    records: int | None = None
    records_per_second: float | None = None
    parameters: int | None = None
    trained_parameters: int | None = None
    gflop: float | None = None
    train_gflop: float | None = None
    kwh: float | None = None

    @property
    def unit(self) -> str:
        return {None: "device-hours", CPU: "core-hours"}.get(self.kind, "GPU-hours")

    def per_million(self, amount: float | None) -> float | None:
        """An amount of the whole run, for a million of the records that it was trained on."""
        return None if amount is None or not self.records else amount * MILLION / self.records

    def price(self, per_hour: Mapping[str, float]) -> float | None:
        """In the currency of the prices; None where none is given for this kind of device."""
        rate = per_hour.get(self.kind or "", per_hour.get(""))
        return None if self.hours is None or rate is None else self.hours * rate


def cost_of_run(run_dir: Path, config: Mapping[str, Any] | None, trace: Sequence[Mapping[str, Any]]) -> Cost:
    """Raises nothing for odd contents: what cannot be read is not known."""
    ranks, memory = read_figures(run_dir), read_json(run_dir / MEMORY) or {}
    listed = memory.get("ranks")
    devices = ranks[0].world_size if ranks else len(listed) if isinstance(listed, list) else None
    device = ranks[0].device if ranks else memory.get("name") or memory.get("device")
    if devices is None:
        devices = _from_checkpoint(run_dir)
    kind = None if not isinstance(device, str) else CPU if device.startswith("cpu") else _gpu(device)
    batch = _global_batch(config)
    seconds = _seconds(trace, batch)
    records = len(trace) * batch if batch and trace else None
    parameters, trained, gflop = _sizes(run_dir, config)
    flop = (read_json(run_dir / COMPUTE) or {}).get("flop_per_record")
    return Cost(
        kind,
        devices,
        seconds * devices / 3600 if seconds and devices else None,
        records,
        records / seconds if records and seconds else None,
        parameters,
        trained,
        gflop,
        flop / 1e9 if isinstance(flop, int | float) and math.isfinite(flop) else None,
    )


def _gpu(name: str) -> str:
    """The kind as prices name it where it is known, else what the driver calls it."""
    from cardialign.pretrain.benchmarks.machines import MACHINES

    return next((kind for kind, each in MACHINES.items() if each.cuda and kind in name.upper()), shown(name)[:60])


def _from_checkpoint(run_dir: Path) -> int | None:
    """Ranks of a run that an earlier release left without notes of its ranks."""
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints

    try:
        found = list_checkpoints(run_dir)
        return int(found[-1].summary["world_size"]) if found else None
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _global_batch(config: Mapping[str, Any] | None) -> int | None:
    training = (config or {}).get("training")
    batch = training.get("global_batch") if isinstance(training, dict) else None
    return batch if isinstance(batch, int) and not isinstance(batch, bool) and batch > 0 else None


def _seconds(trace: Sequence[Mapping[str, Any]], batch: int | None) -> float | None:
    """Of all steps of the trace: each report says the rate of the steps since the one before."""
    total, waiting, told = 0.0, 0, 0
    for line in trace:
        waiting += 1
        rate = line.get("records_per_second")
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0 and batch:
            total, told, waiting = total + waiting * batch / rate, told + waiting, 0
    return total * len(trace) / told if told else None


def _sizes(run_dir: Path, config: Mapping[str, Any] | None) -> tuple[int | None, int | None, float | None]:
    """Parameters of the ECG encoder, of all that trains, and GFLOP of a record through the encoder."""
    from cardialign.pretrain.config import parse_config

    if config is None:
        return None, None, None
    try:
        parsed = parse_config(dict(config), f"configuration of {run_dir}")
        spec = _spec(run_dir, parsed)
        sizing = parsed.model_dump(mode="json", exclude={"name", "seed", "optimizer", "schedule"})
        return (None, None, None) if spec is None else _counted(json.dumps(sizing), *spec)
    except (UserError, ValueError, OSError) as error:
        log.warning("run=%s sizes=unknown reason=%s", run_dir, error)
        return None, None, None


def _spec(run_dir: Path, config: RunConfig) -> tuple[float, float] | None:
    """Hz and seconds of a record: as its export says it, else its shards."""
    contract = read_json(run_dir / EXPORT / CONTRACT) or {}
    told = contract.get("sampling_rate"), contract.get("seconds")
    if all(isinstance(each, int | float) and 0 < each < 1e5 for each in told):
        return float(told[0]), float(told[1])  # type: ignore[arg-type]
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    if not config.data.parts:
        return None
    spec = ShardSet.open(config.data.parts[0].shards).spec
    return spec.sampling_rate, spec.seconds


@cache
def _counted(sizing: str, rate: float, seconds: float) -> tuple[int | None, int | None, float | None]:
    """Runs that differ in what changes no size are counted once."""
    from cardialign.data_shards.record import SignalSpec
    from cardialign.pretrain.benchmarks.counts import count_recipe
    from cardialign.pretrain.config import parse_config

    counts = count_recipe(parse_config(parse_json(sizing), "recipe"), SignalSpec(rate, seconds))
    return counts.encoder_parameters, counts.trained_parameters, counts.forward_flop / 1e9
