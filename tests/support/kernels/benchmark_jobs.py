"""Jobs whose memory and gradients are known, for the tests of the measuring core."""

from __future__ import annotations

import torch

from cardialign.kernels.benchmarks.cases import Job


def job(implementation: str, device: torch.device, elements: int) -> Job:
    """`copies`: keeps that many extra float32 vectors alive during the pass; `absent`: not on this machine."""
    if implementation == "absent":
        raise ValueError("absent needs a machine of tomorrow; use copies")
    x = torch.ones(elements, device=device, requires_grad=True)
    copies = {"one": 1, "four": 4}[implementation]

    def run() -> torch.Tensor:
        kept = [torch.exp(x) for _ in range(copies)]  # exp saves its result for the backward pass
        return torch.stack([each.sum() for each in kept]).sum()

    return Job(run, [x])
