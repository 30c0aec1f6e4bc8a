"""The ECG encoder as a `torch.export` program: one file that plain torch runs, without our code and without a pickle.

    program = torch.export.load("encoder.pt2").module()
    embedding = program(signal, lead_mask, valid_samples)

signal (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples int64 (B,) -> (B, embedding_dim). The program of an
encoder that reads the age takes a fourth tensor, age float32 (B,) in years, NaN where it is not known.

torch stores graph and weights as JSON and raw bytes; only the example inputs would be pickled, so they are left out,
and `pickled_parts` proves it. A program is read by the torch that wrote it or a newer one; the safetensors beside it
have no such limit.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.run.archive import pickled_parts

log = logging.getLogger(__name__)

MAX_BATCH = 65536


class EmbeddingProgram(nn.Module):
    """What a consumer calls: three tensors in, unit vectors out."""

    def __init__(self, encoder: EcgEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor) -> Tensor:
        return self.encoder(signal, lead_mask, valid_samples).embedding


class AgedProgram(nn.Module):
    """The same of an encoder that reads the age: four tensors in."""

    def __init__(self, encoder: EcgEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor, age: Tensor) -> Tensor:
        return self.encoder(signal, lead_mask, valid_samples, age=age).embedding


def save_program(encoder: EcgEncoder, path: Path) -> None:
    """Trace the encoder on the CPU with a dynamic batch and write it to `path`."""
    samples = encoder.samples
    example = {
        "signal": torch.zeros(2, len(STANDARD_LEADS), samples),
        "lead_mask": torch.ones(2, len(STANDARD_LEADS), dtype=torch.bool),
        "valid_samples": torch.full((2,), samples),
        **({"age": torch.tensor([0.1, 40.0])} if encoder.reads_age else {}),
    }
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    module = AgedProgram(encoder).eval() if encoder.reads_age else EmbeddingProgram(encoder).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module, tuple(example.values()), dynamic_shapes={name: {0: batch} for name in example}
        )
        program.example_inputs = None
        torch.export.save(program, path)
    found = pickled_parts(path)
    if found:
        raise RuntimeError(f"torch wrote pickled parts into {path.name}: {found}")
