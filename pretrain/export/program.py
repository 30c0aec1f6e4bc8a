"""The ECG encoder as a `torch.export` program: one file that plain torch runs, without our code and without a pickle.

    program = torch.export.load("encoder.pt2").module()
    embedding = program(signal, lead_mask, valid_samples)

signal (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples int64 (B,) -> (B, embedding_dim). The program of an
encoder that reads the age takes a fourth tensor, age float32 (B,) in years, NaN where it is not known.

The program defends itself: what the library refuses by the values (`given_signal`) comes back as a row of NaN, the
other rows as they would be without it, and a flat lead is masked. It sees no rate, no names of leads and no filter: the
model card of the folder says so first.

torch stores graph and weights as JSON and raw bytes; only the example inputs would be pickled, so they are left out,
and `pickled_parts` proves it. A program is read by the torch that wrote it or a newer one; the safetensors beside it
have no such limit.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cardialign.data_shards.plugins import collector_at_rest
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.export.ages import OLDEST_YEARS
from cardialign.pretrain.export.given_signal import IMPLAUSIBLE_MV, IMPLAUSIBLY_FLAT_MV
from cardialign.pretrain.run.archive import pickled_parts

log = logging.getLogger(__name__)

MAX_BATCH = 65536


class Examined(NamedTuple):
    """sound bool (B,): what the library would take; of all rows the signal, 0 where nothing was recorded, the leads
    that hold one (B, 12), flat ones left out, and valid_samples (B,) within the record."""

    sound: Tensor
    signal: Tensor
    leads: Tensor
    valid_samples: Tensor


def examined(signal: Tensor, lead_mask: Tensor, valid_samples: Tensor, age: Tensor | None = None) -> Examined:
    """Each row by the limits of the library's own check of values, in operators that can be traced."""
    samples = signal.shape[-1]
    valid = valid_samples.clamp(0, samples)
    inside = (torch.arange(samples, device=signal.device) < valid[:, None])[:, None, :]
    recorded = inside & lead_mask[:, :, None]
    finite = (torch.isfinite(signal) | ~recorded).all(dim=2).all(dim=1)
    heard = torch.where(recorded & torch.isfinite(signal), signal, 0.0)
    spread = (heard.amax(dim=2) - heard.amin(dim=2)).amax(dim=1)
    high = torch.where(inside, heard, -torch.inf).amax(dim=2)
    low = torch.where(inside, heard, torch.inf).amin(dim=2)
    leads = lead_mask & (high > low)
    sound = finite & leads.any(dim=1) & (spread >= IMPLAUSIBLY_FLAT_MV) & (spread <= IMPLAUSIBLE_MV)
    if age is not None:
        sound = sound & (torch.isnan(age) | ((age >= 0) & (age <= OLDEST_YEARS)))
    return Examined(sound, torch.where(sound[:, None, None], heard, 0.0), leads, valid)


class EmbeddingProgram(nn.Module):
    """What a consumer calls: three tensors in, unit vectors out, and NaN for a row that is no ECG in mV."""

    def __init__(self, encoder: EcgEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor) -> Tensor:
        return self.guarded(signal, lead_mask, valid_samples)

    def guarded(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor, age: Tensor | None = None) -> Tensor:
        seen = examined(signal, lead_mask, valid_samples, age)
        sound = seen.sound[:, None]
        more = {} if age is None else {"age": torch.where(seen.sound, age, torch.nan)}
        embedding: Tensor = self.encoder(seen.signal, seen.leads, seen.valid_samples, **more).embedding
        return torch.where(sound, embedding, torch.nan)


class AgedProgram(EmbeddingProgram):
    """The same of an encoder that reads the age: four tensors in."""

    def forward(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor, age: Tensor) -> Tensor:  # type: ignore[override]
        return self.guarded(signal, lead_mask, valid_samples, age)


def program_of(encoder: EcgEncoder) -> EmbeddingProgram:
    """What is traced: also what other doors call."""
    return (AgedProgram if encoder.reads_age else EmbeddingProgram)(encoder).eval()


def example_of(encoder: EcgEncoder) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """What a program is traced with: tensors by name in their order, and the axes that stay open."""
    samples = encoder.samples
    example = {
        "signal": torch.zeros(2, len(STANDARD_LEADS), samples),
        "lead_mask": torch.ones(2, len(STANDARD_LEADS), dtype=torch.bool),
        "valid_samples": torch.full((2,), samples),
        **({"age": torch.tensor([0.1, 40.0])} if encoder.reads_age else {}),
    }
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return example, {name: {0: batch} for name in example}


def save_program(encoder: EcgEncoder, path: Path) -> None:
    """Trace the encoder on the CPU with a dynamic batch and write it to `path`.

    Its weights ask for no gradient: what comes out goes to NumPy as it is. Who trains it on asks for them.
    """
    example, dynamic = example_of(encoder)
    module = program_of(encoder)
    trained = [each for each in module.parameters() if each.requires_grad]
    try:
        for each in trained:
            each.requires_grad_(False)
        with torch.no_grad(), warnings.catch_warnings(), collector_at_rest():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(example.values()), dynamic_shapes=dynamic)
            program.example_inputs = None
            torch.export.save(program, path)
    finally:
        for each in trained:
            each.requires_grad_(True)
    found = pickled_parts(path)
    if found:
        raise RuntimeError(f"torch wrote pickled parts into {path.name}: {found}")
