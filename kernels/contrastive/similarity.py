"""How alike two reports are (S), and how much a negative pair counts because of it (alpha).

Shapes: b rows on this rank, B columns (the global batch), m x n one tile, d_s width of the similarity features.
Source: DiagSim-weighted InfoNCE; the mapping S -> alpha is left open there, both forms here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

WeightForm = Literal["none", "ramp", "exponential"]
SimilarityKind = Literal["cosine", "jaccard", "none"]


@dataclass(frozen=True)
class NegativeWeights:
    """The mapping from report similarity S to the weight alpha of a negative pair; never differentiated.

    form:
        ramp         1 up to `low`, falling linearly to 0 at `high`
        exponential  exp(-gamma * relu(S - low)), cut to 0 from `high` on
        none         every negative counts fully
    drop_duplicates: pairs with the same duplicate key (>= 0) never count as negatives.
    Raises ValueError for an unknown form, low >= high, or gamma <= 0.
    """

    form: WeightForm = "ramp"
    low: float = 0.3
    high: float = 0.8
    gamma: float = 4.0
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.form not in get_args(WeightForm):
            raise ValueError(f"unknown weight form {self.form!r}; use one of {', '.join(get_args(WeightForm))}")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; choose low < high")
        if self.gamma <= 0:
            raise ValueError(f"gamma {self.gamma:g} is not positive; choose gamma > 0")

    def alpha(self, similarity: Tensor) -> Tensor:
        """Weights of negatives for similarities of any shape."""
        if self.form == "ramp":
            return similarity.neg().add_(self.high).div_(self.high - self.low).clamp_(0.0, 1.0)
        if self.form == "exponential":
            weight = similarity.sub(self.low).relu_().mul_(-self.gamma).exp_()
            return weight.masked_fill_(similarity >= self.high, 0.0)
        return torch.ones_like(similarity)


@dataclass
class Similarity:
    """What is known about the reports of one (local) batch: features that give S, and keys of equal reports.

    kind:
        cosine   features (b, d_s) are unit rows
        jaccard  features (b, C) are multi-hot 0/1; two empty rows have S = 0
        none     no S, every alpha is 1 (the duplicate rule still holds)
    duplicate_key: int64 (b,), equal for the same report, negative = no key; None = no keys at all.
    Raises ValueError when features are absent or not (b, d_s), or when keys are not integers of shape (b,).
    """

    kind: SimilarityKind = "none"
    features: Tensor | None = None
    duplicate_key: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(SimilarityKind):
            raise ValueError(f"unknown similarity kind {self.kind!r}; use one of {', '.join(get_args(SimilarityKind))}")
        if self.kind == "none":
            self.features = None
        elif self.features is None or self.features.ndim != 2:
            shape = None if self.features is None else tuple(self.features.shape)
            raise ValueError(
                f"similarity kind {self.kind!r} needs features of shape (b, d_s), got {shape}; "
                "pass features, or kind 'none'"
            )
        if self.features is not None:
            # alpha is a constant of the loss: a gradient through it would pull all reports together
            # (dL/dalpha >= 0, alpha falls with S).
            self.features = self.features.detach()
        key = self.duplicate_key
        if key is not None and (key.ndim != 1 or key.is_floating_point() or key.dtype == torch.bool):
            raise ValueError(
                f"duplicate_key must be integers of shape (b,), got {key.dtype} {tuple(key.shape)}; "
                "pass one int64 key per report"
            )

    def check_rows(self, rows: int) -> None:
        """Raise ValueError unless features and keys describe exactly `rows` reports."""
        for name, value in (("features", self.features), ("duplicate_key", self.duplicate_key)):
            if value is not None and value.shape[0] != rows:
                raise ValueError(
                    f"similarity {name} has {value.shape[0]} rows for a batch of {rows}; pass one row per report"
                )

    def with_dtype(self, dtype: torch.dtype) -> Similarity:
        """The same similarity with features in `dtype`, the accumulation type of the loss."""
        return self if self.features is None else replace(self, features=self.features.to(dtype))


class SimilarityTiles:
    """S of any tile of the global batch, made on demand from row and column features: the matrix is never held.

    row_offset: row i here and column row_offset + i are the same report, so that the diagonal (the positives) is known;
    it is negative, or past the last column, where the columns are another rank's.
    valued, keyed: whether anything follows from S, from duplicate keys; what follows, a subclass says.
    Forward and backward ask for the same tiles and so get the same bits.
    """

    valued = keyed = False

    def __init__(self, rows: Similarity, columns: Similarity, row_offset: int = 0) -> None:
        self.rows, self.columns, self.row_offset = rows, columns, row_offset
        if rows.kind == "jaccard":
            assert rows.features is not None and columns.features is not None
            self.row_counts, self.column_counts = rows.features.sum(1), columns.features.sum(1)

    def diagonal(self, rows: slice, columns: slice) -> int:
        """Offset of the positives in a tile, as `Tensor.diagonal` takes it."""
        return self.row_offset + rows.start - columns.start

    def others(self, rows: int, columns: int) -> int:
        """Number of pairs of different records among `rows` rows and `columns` columns."""
        return rows * columns - max(0, min(rows, columns - self.row_offset) - max(0, -self.row_offset))

    def similarity(self, rows: slice, columns: slice) -> Tensor:
        """S (m, n) of one tile, from features alone."""
        assert self.rows.features is not None and self.columns.features is not None
        product = self.rows.features[rows] @ self.columns.features[columns].T
        if self.rows.kind == "cosine":
            return product
        union = (self.row_counts[rows, None] + self.column_counts[None, columns]).sub_(product)
        return product.div_(union.clamp_(min=1.0))  # an empty pair has product 0

    def same_report(self, rows: slice, columns: slice) -> Tensor:
        """True (m, n) where both reports have the same key, which is not negative. Only where there are keys."""
        assert self.rows.duplicate_key is not None and self.columns.duplicate_key is not None
        row_key = self.rows.duplicate_key[rows, None]
        return (row_key == self.columns.duplicate_key[None, columns]) & (row_key >= 0)


class NegativeTiles(SimilarityTiles):
    """alpha of any tile of the global batch; equal bits in forward and backward also where S sits on a threshold."""

    def __init__(self, rows: Similarity, columns: Similarity, weights: NegativeWeights, row_offset: int = 0) -> None:
        super().__init__(rows, columns, row_offset)
        self.weights = weights
        self.valued = rows.kind != "none" and weights.form != "none"
        self.keyed = weights.drop_duplicates and rows.duplicate_key is not None

    @property
    def trivial(self) -> bool:
        """True when every negative counts fully."""
        return not (self.valued or self.keyed)

    def alpha(self, rows: slice, columns: slice) -> Tensor | None:
        """alpha (m, n) of one tile, off-diagonal entries only being meaningful; None when all are 1."""
        if self.trivial:
            return None
        weight = self.weights.alpha(self.similarity(rows, columns)) if self.valued else None
        if not self.keyed:
            return weight
        same = self.same_report(rows, columns)
        return same.logical_not().to(torch.float32) if weight is None else weight.masked_fill_(same, 0.0)
