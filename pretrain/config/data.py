"""The section `data:`: what is read, in which order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cardialign.data_shards.shard_set.splits import FRACTIONS, SALT, SplitRule
from cardialign.pretrain.config.fields import Fraction, Place, Positive, Strict, refuse

Fold = Annotated[int, Field(ge=0, le=10_000)]
Threads = Annotated[int, Field(gt=0, le=1024)]
"""Of one process; also batches that it reads ahead."""


class MixturePart(Strict):
    """One shard set of a mixture.

    Its share of every global batch is its weight over the sum of weights; folds and split: null = those of `data`.
    reports: as in `data`.
    """

    shards: Place
    reports: Place | None = None
    weight: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    folds: tuple[Fold, ...] | None = None
    split: Literal["train", "val", "test"] | None = None


class DataConfig(Strict):
    """What is read, in which order, and how the signal is normalised on the device.

    shards: one shard set, a folder or a URL; or mixture: several with weights. One of the two, never both.
    `load_config` takes a relative folder, in either place, from where the command runs.
    reports: a folder of other reports for the records of `shards`, completed or enriched (`cardialign text complete`,
    `text enrich`); null: the set's own. In a mixture each part names its own.
    window: shuffle within windows of this many shards, for object storage; null = over the whole set.
    max_bad_fraction: share of the selected records that may turn out unreadable and be replaced (at least one record);
    0 stops at the first.
    slow_read_seconds: a read that takes longer is logged while it hangs.
    """

    shards: Place | None = None
    mixture: tuple[MixturePart, ...] = ()
    folds: tuple[Fold, ...] | None = None
    normalisation: Literal["none", "centred", "minmax", "zscore", "lead-std"] = "none"
    patient_disjoint: bool = True
    split: Literal["train", "val", "test"] | None = None
    split_fractions: tuple[Fraction, Fraction, Fraction] = FRACTIONS
    split_salt: str = SALT
    window: Positive | None = None
    threads: Threads = 2
    prefetch: Threads = 4
    max_bad_fraction: Fraction = 0.001
    slow_read_seconds: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    reports: Place | None = None

    @model_validator(mode="after")
    def _fractions_are_a_split(self) -> DataConfig:
        if abs(sum(self.split_fractions) - 1) > 1e-9:
            refuse(
                [
                    f"split_fractions {list(self.split_fractions)} do not sum to 1; "
                    "give train, val and test, e.g. [0.8, 0.1, 0.1]"
                ]
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        problems = []
        if self.shards is not None and self.mixture:
            problems.append("shards and mixture are both set; keep one of them (the other to null or [])")
        if self.reports is not None and self.mixture:
            problems.append("reports belongs to shards; in a mixture give each part its own")
        seen = [(str(part.shards), part.folds, part.split) for part in self.mixture]
        for shards, folds, split in sorted({entry for entry in seen if seen.count(entry) > 1}, key=str):
            problems.append(
                f"mixture names {shards} twice with folds {folds} and split {split}; "
                "name it once and add up the weights"
            )
        refuse(problems)
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The shard sets to read, one or several, with the folds and the split that apply to each;
        empty when none is named.
        """
        named = self.mixture
        if self.shards is not None:
            named = (MixturePart(shards=self.shards, reports=self.reports),)
        inherited = ("folds", "split")
        return tuple(
            part.model_copy(update={name: getattr(self, name) for name in inherited if getattr(part, name) is None})
            for part in named
        )

    def split_rule(self, part: MixturePart) -> SplitRule | None:
        """What `ShardSet.select` takes for one of `parts`; None when no split is set."""
        return None if part.split is None else SplitRule(part.split, self.split_salt, self.split_fractions)
