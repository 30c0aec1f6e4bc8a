"""Bytes that a rank sends in a step, and how long a step and a run take: arithmetic, nothing measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cardialign.cluster.planning.memory import FLOAT, Setting

if TYPE_CHECKING:
    from cardialign.pretrain.benchmarks.footprint import Footprint
    from cardialign.pretrain.benchmarks.machines import Machine

MFU = {"cuda": 0.05, "cpu": 0.25}
"""Share of the peak that is assumed. One H100 did 0.100 in a step of `cardialign-base` and 0.052 in one of
`cardialign-small` (`kernels/benchmarks/FIGURES_H100.md`); large language models reach 0.3 to 0.5 (Chowdhery et al.
2022, PaLM, table 3). One core of a CPU seldom keeps its vector units busy half of the time."""
WIRE = 0.5
"""Share of a link's published rate that is assumed."""

STREAM = 0.7
"""Share of the published bandwidth of memory that kernels reach on what they read and write once."""


class Rates(NamedTuple):
    """What a device does per second: FLOP at the assumed share, records where the user measured them, and data.

    data: records/s that the ranks together can read; None where nobody said.
    """

    flop: float
    records: float | None
    data: float | None


def exchanged_bytes(counted: Footprint, stage: int, setting: Setting, ring: bool) -> dict[str, int]:
    """Bytes that one rank sends in a step, by purpose.

    A collective over W ranks sends (W - 1) / W of its bytes per rank, an all-reduce twice that. ZeRO 2 and 3 reduce
    gradients after every micro-batch, ZeRO 3 gathers weights for every pass.
    """
    world, rows, sizes = setting.world, setting.local_rows, counted.parameters
    if world == 1:
        return {"features": 0, "gradients": 0, "weights": 0}
    part = (world - 1) / world
    trained = 2 * sizes.half_on_the_wire + FLOAT * (sizes.trained - sizes.half_on_the_wire)
    if ring:
        ahead = 2 * (world - 1) * rows * counted.exchanged_bytes
        features = ahead + world * rows * (FLOAT + FLOAT * counted.gradient_width)
    else:
        gathered = 2 * (world - 1) * rows * counted.exchanged_bytes
        joined = setting.global_batch * (2 * FLOAT + FLOAT * counted.gradient_width)
        features = gathered + round(2 * part * joined)
    times = setting.micro_batches if stage >= 2 else 1
    gradients = round(part * (trained if stage == 3 else 2 * trained)) * times
    weights = 0
    if stage in (1, 2):
        weights = round(part * FLOAT * sizes.trained)
    elif stage == 3:
        every = trained + FLOAT * sizes.frozen
        weights = round(part * every) * (counted.passes + 1) * setting.micro_batches
    return {"features": features, "gradients": gradients, "weights": weights}


def step_time(
    counted: Footprint, machine: Machine, rates: Rates, setting: Setting, sent: int, nodes: int
) -> dict[str, Any]:
    """Seconds of a step by part: arithmetic or memory, whichever takes longer, then the exchange; reading is hidden
    behind both."""
    flop = setting.local_rows * (counted.passes * counted.forward_flop + counted.backward_flop)
    moved = setting.local_rows * (counted.passes * counted.forward_moved + counted.backward_moved)
    by_memory = 0.0 if machine.memory_gb_s is None else moved / (machine.memory_gb_s * 1e9 * STREAM)
    compute = max(flop / rates.flop, by_memory)
    link = machine.network_gb_s if nodes > 1 else machine.link_gb_s
    exchange = sent / (link * 1e9 * WIRE)
    seconds = compute + exchange
    if rates.records is not None:
        compute, exchange = setting.local_rows / rates.records, 0.0
        seconds = compute
    needed = setting.global_batch / seconds
    bound = "exchange" if exchange > compute else "memory" if by_memory == compute else "arithmetic"
    if rates.data is not None and rates.data < needed:
        seconds, bound = setting.global_batch / rates.data, "data"
    return {
        "flop_per_rank": flop,
        "moved_bytes_per_rank": moved,
        "arithmetic_seconds": flop / rates.flop,
        "memory_seconds": by_memory,
        "compute_seconds": compute,
        "exchange_seconds": exchange,
        "seconds": seconds,
        "bound_by": bound,
        "records_per_second": setting.global_batch / seconds,
        "needed_records_per_second": needed,
    }
