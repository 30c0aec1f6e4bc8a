"""What the contrastive kernels are given: embeddings, what is known about the reports, and the shape of a tile. No triton here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.similarity import NegativeTiles

FORMS = {"none": 0, "ramp": 1, "exponential": 2}
"""Number by which a kernel knows a form of NegativeWeights."""


class Tile(NamedTuple):
    """rows x columns logits of one program, `depth` features at a time, and how it is launched."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least 16: the smallest side of a tensor-core dot."""
    return max(16, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Operands:
    """v (b, d) against t (B, d), both of one type; scale 0-dim float32. Row i is global row row_offset + i, column j is column_offset + j.

    row_features (b, d_s), column_features (B, d_s), row_key (b,), column_key (B,) stand for each other's absence by v and t: never read.
    form: FORMS; slope: what `log_weights` says.
    """

    v: Tensor
    t: Tensor
    scale: Tensor
    row_features: Tensor
    column_features: Tensor
    row_key: Tensor
    column_key: Tensor
    form: int
    has_keys: bool
    high: float
    slope: float
    low: float
    row_offset: int
    column_offset: int = 0

    @classmethod
    def of(cls, v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles) -> Operands:
        """From the arguments of block_sums.

        Features of half-precision embeddings are taken in float16: unit rows lose at most 5e-4 of S (2e-5 typically), at the full
        tensor-core rate. Features of float32 embeddings stay float32.
        """
        v, t = v.contiguous(), t.contiguous()
        weights, similarity = tiles.weights, tiles.rows
        form = FORMS[weights.form] if similarity.kind != "none" else 0
        has_keys = weights.drop_duplicates and similarity.duplicate_key is not None
        features, keys = (v, t), (v, t)
        if form:
            assert tiles.rows.features is not None and tiles.columns.features is not None
            kind = torch.float32 if v.dtype == torch.float32 else torch.float16
            features = tuple(side.features.to(kind).contiguous() for side in (tiles.rows, tiles.columns))  # type: ignore[union-attr, assignment]
        if has_keys:
            keys = tuple(side.duplicate_key.to(torch.int64).contiguous() for side in (tiles.rows, tiles.columns))  # type: ignore[union-attr, assignment]
        slope = 1 / (weights.high - weights.low) if weights.form == "ramp" else weights.gamma * math.log2(math.e)
        return cls(v, t, scale.detach().float(), *features, *keys, form, has_keys, weights.high, slope, weights.low, tiles.row_offset)

    def block(self, rows: slice, columns: slice) -> Operands:
        """The operands of some rows against some columns."""
        return replace(
            self,
            v=self.v[rows],
            t=self.t[columns],
            row_features=self.row_features[rows],
            column_features=self.column_features[columns],
            row_key=self.row_key[rows],
            column_key=self.column_key[columns],
            row_offset=self.row_offset + rows.start,
            column_offset=self.column_offset + columns.start,
        )

    def swapped(self) -> Operands:
        """Columns as rows and rows as columns; alpha is symmetric."""
        return replace(
            self,
            v=self.t,
            t=self.v,
            row_features=self.column_features,
            column_features=self.row_features,
            row_key=self.column_key,
            column_key=self.row_key,
            row_offset=self.column_offset,
            column_offset=self.row_offset,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Run-time arguments that every kernel takes; Q are the rows, K the columns."""
        return {
            "Q": self.v,
            "K": self.t,
            "EQ": self.row_features,
            "EK": self.column_features,
            "KEYQ": self.row_key,
            "KEYK": self.column_key,
            "SCALE": self.scale,
            "rows": self.v.shape[0],
            "columns": self.t.shape[0],
            "q_offset": self.row_offset,
            "k_offset": self.column_offset,
            "high": self.high,
            "slope": self.slope,
            "low": self.low,
        }

    def constants(self, tile: Tile) -> dict[str, Any]:
        """Constants that every kernel takes. float32 is multiplied as float32, not as TF32."""
        width, similarity_width = self.v.shape[1], self.row_features.shape[1] if self.form else 1
        return {
            "FORM": self.form,
            "KEYS": self.has_keys,
            "D": width,
            "DS": similarity_width,
            "M": tile.rows,
            "N": tile.columns,
            "DEPTH": min(tile.depth, power_of_two(width)),
            "DEPTH_S": min(tile.depth, power_of_two(similarity_width)),
            "PRECISION": "ieee",
        }
