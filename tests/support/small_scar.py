"""SCAR-R, very small, on two seconds at 100 Hz, and a batch with missing leads, a short record and equal reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.scar.method import Scar
from tests.support.small_encoder import SPEC, small_config

ENCODER = {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "patch_ms": 200}
ENCODER |= {"pooling": "selector", "attention": "packed", "embedding_dim": 8}
MASKER = {"width": 8, "depth": 1, "heads": 2, "turns": "reversal", "aim": "loss"}
B, PATCHES = 6, 10
REPORTS = np.array([0, 1, 2, 1, 4, 5])


class Bank:
    """Vectors and keys of five distinct reports."""

    def embedding(self, reports: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(6, 384)).astype(np.float32)[reports]

    def similarity_features(self, reports: np.ndarray, dim: int | None = None) -> np.ndarray:
        rows = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True))[reports]

    def report_keys(self, reports: np.ndarray) -> np.ndarray:
        return reports


def make(masker: dict[str, Any] | None = MASKER, encoder: dict[str, Any] = ENCODER, **method: Any) -> Scar:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=encoder, method={"name": "scar", "masker": masker, **method}), SPEC)
    assert isinstance(made, Scar)
    return made.eval()


def batch(rows: slice = slice(0, B)) -> Batch:
    generator, places = np.random.default_rng(0), np.arange(B)[rows]
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:] = False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2] = 95
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    ages = np.zeros(len(places), np.float32)
    sexes = np.zeros(len(places), np.int8)
    return Batch(1, places, signal[rows], mask[rows], valid[rows], REPORTS[rows], ages, sexes, np.arange(B))


def inputs_of(method: Scar, step: int = 1, rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return method.inputs(batch(rows), Bank(), Draws(0, step, rows))  # type: ignore[arg-type]


def doubled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
