"""How much of their peak the devices of a run reach: model FLOP utilisation (MFU).

MFU = FLOPs of the model's forward and backward pass of a record x records per second / peak of all devices together
(Chowdhery et al. 2022, PaLM, appendix B): what is computed twice to save memory does not count. Peaks are those of the
data sheets (`pretrain/benchmarks/machines.py`), or what the user has measured; of others no MFU is told.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.files import write_json
from cardialign.pretrain.run.figures import RankFigures, read_figures
from cardialign.pretrain.run.files import COMPUTE

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)

LOOK_SECONDS, WAIT_SECONDS = 2.0, 30.0
OTHER_FORMS = ("PCIE", "NVL", "MIG", "GH200")
"""In the names of devices that reach less, or more, than the form whose data sheet is known."""
SAME_PEAK = ("A100",)
"""Kinds whose PCIe form has the peak of the SXM form (NVIDIA A100 data sheet)."""


def peak_of(device: str, precision: str) -> float | None:
    """FLOP/s of a device as its driver names it ("NVIDIA H100 80GB HBM3"), at "bf16" or "fp32"; None where no data
    sheet is known, as for every CPU."""
    from cardialign.pretrain.benchmarks.machines import MACHINES

    name = device.upper()
    machine = next((each for kind, each in MACHINES.items() if each.cuda and kind in name), None)
    if machine is None:
        return None
    others = [form for form in OTHER_FORMS if form in name]
    if others and not (others == ["PCIE"] and machine.name in SAME_PEAK):
        return None
    return machine.bf16_flop_s if precision == "bf16" else machine.fp32_flop_s


def utilisation(note: Mapping[str, Any] | None, ranks: tuple[RankFigures, ...], rate: float | None) -> float | None:
    """MFU of a run at `rate` records per second; note: what `counted` wrote. None where one of them is not known."""
    if note is None or not ranks or rate is None or note.get("device") != ranks[0].device:
        return None
    flop, peak = note.get("flop_per_record"), note.get("peak_flop_s")
    if not (isinstance(flop, int | float) and isinstance(peak, int | float) and math.isfinite(flop) and peak > 0):
        return None
    return float(flop) * rate / (ranks[0].world_size * float(peak))


def flop_of(config: RunConfig) -> int | None:
    """FLOPs of both passes of one whole record of the run's shards; None where its report encoder is not here."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.benchmarks.counts import text_on_this_machine
    from cardialign.pretrain.benchmarks.footprint import count_footprint

    text, _ = text_on_this_machine(config)
    if text is None:
        return None
    spec = ShardSet.open(config.data.parts[0].shards).spec
    found = count_footprint(config.model_copy(update={"text": text}), spec, "cpu", 2, 2)
    return found.forward_flop + found.backward_flop


@contextlib.contextmanager
def counted(config: RunConfig, run_dir: Path, peak_tflops: float | None = None) -> Iterator[None]:
    """While open, count once what a record costs, as soon as the first rank tells its device, into `compute.json`.

    peak_tflops: of one worker, as the user measured it. Without it a device that no data sheet is known of is left
    alone, and nothing is counted. It is done in a thread; that it fails is no reason for the run to do so.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_count, args=(config, Path(run_dir), peak_tflops, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(WAIT_SECONDS)


def _count(config: RunConfig, run_dir: Path, peak_tflops: float | None, ended: threading.Event) -> None:
    try:
        while not (ranks := read_figures(run_dir)):
            if ended.wait(LOOK_SECONDS):
                return
        device = ranks[0].device
        peak = peak_of(device, config.training.precision) if peak_tflops is None else peak_tflops * 1e12
        flop = None if peak is None else flop_of(config)
        if flop is not None:
            write_json(run_dir / COMPUTE, {"device": device, "peak_flop_s": peak, "flop_per_record": flop}, indent=1)
    except Exception:
        log.debug("compute=uncounted", exc_info=True)
