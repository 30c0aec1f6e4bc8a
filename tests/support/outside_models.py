"""Encoders of other people, as small as can be: real files of every form, with the contract beside them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

STANDARD = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
REVERSED = STANDARD[::-1]
CONTRACT: dict[str, Any] = {
    "sampling_rate": 50,
    "seconds": 1,
    "shorter": "zeros",
    "leads": REVERSED,
    "missing_leads": "zeros",
    "units": "uV",
    "normalisation": "none",
    "filter": "none",
    "layout": "time-leads",
    "dtype": "float32",
    "output": "only",
    "pooling": "none",
    "embedding_dim": 6,
    "trained_on": "unknown",
}
"""1 s at 50 Hz, leads backwards, microvolts, time first: nothing as we have it."""


class Readout(nn.Module):
    """(B, 50, 12) -> (B, 6): a linear map of every lead's mean and of its sample 20."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.map = nn.Linear(24, 6)

    def forward(self, signal: Tensor) -> Tensor:
        assert signal.shape[1] == 50, f"a signal of {signal.shape[1]} samples"
        return self.map(torch.cat([signal.mean(dim=1), signal[:, 20]], dim=1) / 1000)


def write_contract(path: Path, **changes: Any) -> Path:
    """`path`.contract.yaml; a key with the value None is left out."""
    values = {key: value for key, value in {**CONTRACT, **changes}.items() if value is not None}
    place = path.with_name(f"{path.name}.contract.yaml")
    place.write_text(yaml.safe_dump(values, sort_keys=False))
    return place


def write_torchscript(path: Path, module: nn.Module | None = None, freeze: bool = False, **changes: Any) -> Path:
    """A scripted module in a file with its contract."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script((module or Readout()).eval())
        (torch.jit.freeze(made) if freeze else made).save(str(path))
    write_contract(path, **changes)
    return path
