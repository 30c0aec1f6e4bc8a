"""Devices as their makers' data sheets describe them: data, no code. Every figure is published, none is measured here.

Dense figures: the sheets' "with sparsity" are twice as high and no model of ours reaches for them.
"""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """One device of a cluster: a GPU, or a core of a CPU.

    bf16_flop_s, fp32_flop_s: peaks. memory_gib, memory_gb_s: of the device, None where that depends on the host.
    link_gb_s: bytes that a device sends to another of its node, one direction. network_gb_s: to another node, and per
    device. watts: the most it draws. source: where these stand. assumed: what stands in no sheet.
    """

    name: str
    bf16_flop_s: float
    fp32_flop_s: float
    memory_gib: float | None
    memory_gb_s: float | None
    link_gb_s: float
    network_gb_s: float
    watts: float | None
    source: str
    assumed: str
    cuda: bool = True


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "H200", 989e12, 67e12, 141e9 / 2**30, 4800, 450, 50, 700,
            "NVIDIA H200 data sheet, SXM form (141 GB HBM3e, NVLink 900 GB/s both ways)",
            "one 400 Gb/s network port per GPU, as in NVIDIA's DGX H200",
        ),
        Machine(
            "H100", 989e12, 67e12, 80e9 / 2**30, 3350, 450, 50, 700,
            "NVIDIA H100 data sheet, SXM form (80 GB HBM3, NVLink 900 GB/s both ways)",
            "one 400 Gb/s network port per GPU, as in NVIDIA's DGX H100",
        ),
        Machine(
            "A100", 312e12, 19.5e12, 80e9 / 2**30, 2039, 300, 25, 400,
            "NVIDIA A100 data sheet, SXM form of 80 GB (HBM2e, NVLink 600 GB/s both ways)",
            "one 200 Gb/s network port per GPU, as in NVIDIA's DGX A100",
        ),
        Machine(
            "L40S", 362.05e12, 91.6e12, 48e9 / 2**30, 864, 32, 12.5, 350,
            "NVIDIA L40S data sheet (48 GB GDDR6, PCIe 4.0 x16, no NVLink)",
            "100 Gb/s of network per GPU: the sheet of a card names none",
        ),
        Machine(
            "CPU", 80e9, 80e9, None, None, 5, 1.25, None,
            "one core with AVX2: 2 units x 8 float32 x 2 FLOP x 2.5 GHz (Intel, Optimization Reference Manual)",
            "the clock, bf16 no faster than fp32, 5 GB/s between ranks of a node, and 10 Gb/s of network",
            cuda=False,
        ),
    )
}  # fmt: skip
"""Name, as `--kind` and the name that a driver gives the device have it -> the machine."""
