"""How much a pair of reports counts as a match (y), from their similarity (S).

Soft labels instead of "own report 1, every other 0". y_ii = 1. For i != j, with the pair's S (a constant, never
differentiated):
    none      y = 0: hard labels
    ramp      y = weight * clamp((S - low) / (high - low), 0, 1)
    sigmoid   y = weight * sigmoid(slope * (S - threshold)) * max(S, 0)
    identity  y = S itself
and y = 1 where both reports have the same duplicate key (>= 0) and `match_duplicates` holds. Without features
(similarity kind "none") every other pair has y = 0.
Source: sigmoid, public code after DiagSim (threshold 0.95, slope 10, weight 0.05); identity, false-negative mitigation
of FG-CLEP; ramp is the complement of the negative weights in `similarity`. Shapes: b rows, n columns, m x n one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from cardialign.kernels.contrastive.similarity import Similarity, SimilarityTiles

TargetForm = Literal["none", "ramp", "sigmoid", "identity"]


@dataclass(frozen=True)
class SoftTargets:
    """The mapping from S to y.

    Raises ValueError for an unknown form, low >= high, a weight outside (0, 1], or slope <= 0.
    """

    form: TargetForm = "ramp"
    low: float = 0.3
    high: float = 0.8
    threshold: float = 0.95
    slope: float = 10.0
    weight: float = 1.0
    match_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.form not in get_args(TargetForm):
            raise ValueError(f"unknown target form {self.form!r}; use one of {', '.join(get_args(TargetForm))}")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; choose low < high")
        if not 0 < self.weight <= 1:
            raise ValueError(
                f"weight {self.weight:g} is outside (0, 1]; "
                "a soft match counts at most as much as the pair's own report"
            )
        if self.slope <= 0:
            raise ValueError(f"slope {self.slope:g} is not positive; choose slope > 0")

    def target(self, similarity: Tensor) -> Tensor:
        """y of pairs of different reports for similarities of any shape; may overwrite its argument."""
        if self.form == "ramp":
            return similarity.sub_(self.low).div_(self.high - self.low).clamp_(0.0, 1.0).mul_(self.weight)
        if self.form == "sigmoid":
            gate = similarity.sub(self.threshold).mul_(self.slope).sigmoid_()
            return similarity.relu_().mul_(gate).mul_(self.weight)
        return similarity if self.form == "identity" else similarity.zero_()


class TargetTiles(SimilarityTiles):
    """y of any tile of the global batch; the matrix is never held."""

    def __init__(self, rows: Similarity, columns: Similarity, targets: SoftTargets, row_offset: int = 0) -> None:
        super().__init__(rows, columns, row_offset)
        self.targets = targets
        self.valued = rows.kind != "none" and targets.form != "none"
        self.keyed = targets.match_duplicates and rows.duplicate_key is not None

    @property
    def trivial(self) -> bool:
        """True when only the matching pairs have a target."""
        return not (self.valued or self.keyed)

    def off_diagonal(self, rows: slice, columns: slice, like: Tensor) -> Tensor:
        """y (m, n) of one tile with 0 in place of the matching pairs, in the type and on the device of `like`."""
        if self.valued:
            tile = self.targets.target(self.similarity(rows, columns))
            if self.keyed:
                tile.masked_fill_(self.same_report(rows, columns), 1.0)
        elif self.keyed:
            tile = self.same_report(rows, columns).to(like.dtype)
        else:
            return like.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
        tile.diagonal(self.diagonal(rows, columns)).zero_()
        return tile
