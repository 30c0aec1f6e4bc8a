"""One optimizer step of a recipe on one device:
forward, loss, backward, clipping and update of the real model on signals made of noise.

It is the arithmetic of a training step without data path, DeepSpeed and gradient caching: one micro-batch of the
recipe, autocast as in training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.kernels.benchmarks.timing import gemm_rate
from cardialign.pretrain.benchmarks.machines import MACHINES
from cardialign.pretrain.benchmarks.noise import NoiseBank, noise_batch
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.training.engine import make_optimizer

CPU_RECIPES = ("cardialign-demo", "cardialign-tiny")
CPU_BATCH = 32
PARTS = ("forward", "backward", "optimizer")


def measure_step(
    recipe: str,
    device: torch.device,
    *,
    overrides: Sequence[str] = (),
    batch: int | None = None,
    spec: SignalSpec | None = None,
    rounds: int = 10,
    profile: bool = False,
) -> dict[str, Any]:
    """Median milliseconds of a step and its parts, ECG/s, FLOPs per step, their rate beside a GEMM's of this run.

    batch: records per step; default the recipe's micro-batch, on a CPU at most 32. spec: default 10 s at 500 Hz. Times
    are wall-clock on CUDA and CPU seconds on a CPU. `mfu` is there where the device's data sheet is known and the
    recipe runs in bf16; `peak_mib` on CUDA, all of the step included.
    profile: also `profile`, torch.profiler's table of one step. Raises UsageError for a CPU and a recipe that is not
    made for one.
    """
    config = load_config(recipe, list(overrides))
    if device.type == "cpu" and config.name not in CPU_RECIPES:
        raise UsageError(
            f"one step of {config.name} on a CPU takes minutes",
            f"measure {' or '.join(CPU_RECIPES)} here, or use a GPU",
        )
    largest = config.training.micro_batch or config.training.global_batch
    records = batch or (min(CPU_BATCH, largest) if device.type == "cpu" else largest)
    if records < 2:
        raise UsageError(f"a batch of {records} has no negatives", "give 2 records or more")
    step = _Step(config, spec or SignalSpec(500, 10), device, records)
    flops = step.count_flops()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step.once()
    times = [step.once() for _ in range(rounds)]
    median = {part: statistics.median(each[part] for each in times) for part in PARTS}
    seconds = statistics.median(sum(each.values()) for each in times)
    gemm = gemm_rate(device)
    figures: dict[str, Any] = {
        "recipe": config.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": config.training.precision,
        "batch": records,
        "parameters": sum(p.numel() for p in step.model.parameters() if p.requires_grad),
        "ecg_per_s": records / seconds,
        "step_ms": seconds * 1e3,
        **{f"{part}_ms": median[part] * 1e3 for part in PARTS},
        "flop_per_step": flops,
        "flop_s": flops / seconds,
        "gemm_flop_s": gemm,
        "share_of_gemm": flops / seconds / gemm,
    }
    if device.type == "cuda":
        figures["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        peak = next((m.bf16_flop_s for m in MACHINES.values() if m.name in figures["device"]), None)
        if peak is not None and config.training.precision == "bf16":
            figures["mfu"] = flops / seconds / peak
    if profile:
        figures["profile"] = _profile(step.once, device)
    return figures


class _Step:
    """Model, optimizer, loss and one batch on the device."""

    def __init__(self, config: RunConfig, spec: SignalSpec, device: torch.device, records: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.model = create_method(config, spec).to(device).train()
        self.optimizer = make_optimizer(self.model, config.optimizer, device)
        draws = Draws(config.seed, 0, slice(0, records))
        inputs = self.model.inputs(noise_batch(config, spec, records), NoiseBank(config, records), draws)
        self.inputs = {name: tensor.to(device) for name, tensor in inputs.items()}

    def forward(self) -> Tensor:
        with (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.config.training.precision == "bf16"
            else nullcontext()
        ):
            features = self.model(self.inputs)
        features = {name: value.float() for name, value in features.items()}
        return self.model.loss(features, self.inputs, None).loss

    def count_flops(self) -> float:
        """FLOPs of matrix products and attention, forward and backward, as PyTorch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.forward().backward()
        self.optimizer.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    def once(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        marks = [self._now()]
        loss = self.forward()
        marks.append(self._now())
        loss.backward()
        marks.append(self._now())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.grad_clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.append(self._now())
        return dict(zip(PARTS, (after - before for before, after in pairwise(marks)), strict=True))

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _profile(once: Callable[[], Any], device: torch.device) -> str:
    activities = [torch.profiler.ProfilerActivity.CPU]
    by = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        by = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as measured:
        once()
    return str(measured.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))
