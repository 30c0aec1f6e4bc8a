"""What the loss kernels are given: embeddings, what is known about the reports, and the shape of a tile. No triton."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetTiles

WEIGHT_FORMS = {"none": 0, "ramp": 1, "exponential": 2}
TARGET_FORMS = {"none": 0, "ramp": 1, "sigmoid": 2, "identity": 3}
"""Numbers by which a kernel knows a form of NegativeWeights, of SoftTargets."""
LOG2E = math.log2(math.e)


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


def split(rows: int, columns: int, tile: Tile, programs: int) -> tuple[int, int, int]:
    """(row blocks, spans, columns of a span): how a launch is cut.

    About `programs` programs share it, or there is one for each tile.
    """
    row_blocks, column_blocks = -(-rows // tile.rows), -(-columns // tile.columns)
    span = -(-column_blocks // min(column_blocks, -(-programs // row_blocks))) * tile.columns
    return row_blocks, -(-columns // span), span


class Mapping(NamedTuple):
    """From S to alpha or y: number of the form, and the numbers that `log_weights` or `soft_targets` take."""

    form: int
    high: float
    slope: float
    low: float
    weight: float

    @classmethod
    def of(cls, tiles: NegativeTiles | TargetTiles) -> Mapping:
        if isinstance(tiles, NegativeTiles):
            weights = tiles.weights
            slope = 1 / (weights.high - weights.low) if weights.form == "ramp" else weights.gamma * LOG2E
            return cls(WEIGHT_FORMS[weights.form] if tiles.valued else 0, weights.high, slope, weights.low, 1.0)
        targets = tiles.targets
        form = TARGET_FORMS[targets.form] if tiles.valued else 0
        if targets.form == "sigmoid":
            return cls(form, 1.0, targets.slope * LOG2E, targets.threshold, targets.weight)
        return cls(form, targets.high, 1 / (targets.high - targets.low), targets.low, targets.weight)


@dataclass(frozen=True)
class Operands:
    """v (b, d) against t (n, d), both of one type; row i is global row row_offset + i, column j is column_offset + j.

    scale: 0-dim float32.
    row_features (b, d_s), column_features (n, d_s): for the similarity of reports.
    row_sizes (b,), column_sizes (n,): their sums, float32, for Jaccard similarity.
    row_key (b,), column_key (n,): int64.
    v and t stand for what is absent and never read.
    """

    v: Tensor
    t: Tensor
    scale: Tensor
    row_features: Tensor
    column_features: Tensor
    row_sizes: Tensor
    column_sizes: Tensor
    row_key: Tensor
    column_key: Tensor
    mapping: Mapping
    has_keys: bool
    jaccard: bool
    row_offset: int
    column_offset: int = 0

    @classmethod
    def of(cls, v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles | TargetTiles) -> Operands:
        """From the arguments of a block function.

        Features of half-precision embeddings are taken in float16: unit rows lose at most 5e-4 of S (2e-5 typically),
        multi-hot rows nothing, at the full tensor-core rate. So the slope of |l - S| may have the other sign where
        |l - S| is below that. Features of float32 embeddings stay float32.
        """
        v, t = v.contiguous(), t.contiguous()
        sides, jaccard = (tiles.rows, tiles.columns), tiles.valued and tiles.rows.kind == "jaccard"
        features, sizes, keys = [v, t], [v, t], [v, t]
        if tiles.valued:
            kind = torch.float32 if v.dtype == torch.float32 else torch.float16
            features = [side.features.to(kind).contiguous() for side in sides]  # type: ignore[union-attr]
        if jaccard:
            sizes = [tiles.row_counts.float(), tiles.column_counts.float()]
        if tiles.keyed:
            keys = [side.duplicate_key.to(torch.int64).contiguous() for side in sides]  # type: ignore[union-attr]
        (fq, fk), (sq, sk), (kq, kk) = features, sizes, keys
        mapping, offset = Mapping.of(tiles), tiles.row_offset
        return cls(v, t, scale.detach().float(), fq, fk, sq, sk, kq, kk, mapping, tiles.keyed, jaccard, offset)

    def block(self, rows: slice, columns: slice) -> Operands:
        """The operands of some rows against some columns."""
        return replace(
            self,
            v=self.v[rows],
            t=self.t[columns],
            row_features=self.row_features[rows],
            column_features=self.column_features[columns],
            row_sizes=self.row_sizes[rows],
            column_sizes=self.column_sizes[columns],
            row_key=self.row_key[rows],
            column_key=self.column_key[columns],
            row_offset=self.row_offset + rows.start,
            column_offset=self.column_offset + columns.start,
        )

    def swapped(self) -> Operands:
        """Columns as rows and rows as columns; alpha and y are symmetric."""
        return replace(
            self,
            v=self.t,
            t=self.v,
            row_features=self.column_features,
            column_features=self.row_features,
            row_sizes=self.column_sizes,
            column_sizes=self.row_sizes,
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
            "SIZEQ": self.row_sizes,
            "SIZEK": self.column_sizes,
            "KEYQ": self.row_key,
            "KEYK": self.column_key,
            "SCALE": self.scale,
            "rows": self.v.shape[0],
            "columns": self.t.shape[0],
            "q_offset": self.row_offset,
            "k_offset": self.column_offset,
            "high": self.mapping.high,
            "slope": self.mapping.slope,
            "low": self.mapping.low,
            "weight": self.mapping.weight,
        }

    def constants(self, tile: Tile) -> dict[str, Any]:
        """Constants that every kernel takes. float32 is multiplied as float32, not as TF32."""
        width, similarity_width = self.v.shape[1], self.row_features.shape[1] if self.mapping.form else 1
        return {
            "FORM": self.mapping.form,
            "KEYS": self.has_keys,
            "JACCARD": self.jaccard,
            "D": width,
            "DS": similarity_width,
            "M": tile.rows,
            "N": tile.columns,
            "DEPTH": min(tile.depth, power_of_two(width)),
            "DEPTH_S": min(tile.depth, power_of_two(similarity_width)),
            "PRECISION": "ieee",
        }
