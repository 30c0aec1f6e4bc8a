"""Does a method of signals alone learn? A probe of its features against one of fresh weights, on patients it never saw.

Virtual patients, records of 5 s at 100 Hz. The probe learns from the records that the method was trained on, which have
labels that the method never read; a fifth of these patients choose the penalty. It is scored on other patients.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cardialign.data_shards.files import commit_folder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, probe
from cardialign.pretrain.evaluation.scored import PairedFigure, ScoredRecords, paired
from cardialign.pretrain.evaluation.selection.effective_rank import effective_rank
from cardialign.pretrain.export.loaded import LoadedEncoder
from tests.support.learning import LearningData, make_virtual_set

SECONDS = 5
DRAWS = 3
"""Of a share of the labels, so many draws are averaged."""


def make_probed_data(folder: Path, trained: int = 960, unseen: int = 960, seed: int = 11) -> LearningData:
    """Two sets of two records per patient, the second of other patients (`seed` + 1); no bank. Made once, whoever of
    several processes comes first."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with commit_folder(folder) as making:
                make_virtual_set(making / "train", trained, seed, SECONDS)
                make_virtual_set(making / "unseen", unseen, seed + 1, SECONDS)
    return LearningData(folder / "train", folder / "unseen")


@dataclass(frozen=True)
class Probed:
    """What a probe of one encoder scores, and the RankMe of its features of the unseen records (1: a single point)."""

    scored: ScoredRecords
    rank: float


@dataclass(frozen=True)
class Gain:
    """Probe AUROC, macro over findings, of trained and of fresh weights, paired by patient; and the RankMe of both."""

    auroc: PairedFigure
    rank: float
    fresh_rank: float

    def __str__(self) -> str:
        ahead = self.auroc.difference
        return (
            f"probe {self.auroc.mine:.3f}, fresh weights {self.auroc.theirs:.3f}, ahead {ahead.value:+.3f} "
            f"({ahead.low:+.3f} to {ahead.high:+.3f}), RankMe {self.rank:.1f}, fresh weights {self.fresh_rank:.1f}"
        )


@dataclass
class Judge:
    """Probes encoders on one pair of sets; what fresh weights give is kept for every encoder of the same shape."""

    data: LearningData
    fresh: dict[tuple[str, float], Probed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sets = ShardSet.open(self.data.shards), ShardSet.open(self.data.unseen)
        self.sets = [(each, each.select(label_set="finding").rows) for each in sets]
        codes, truth = zip(*(each.labels(rows, "finding")[:2] for each, rows in self.sets), strict=True)
        assert codes[0] == codes[1]
        self.codes, self.truth = codes[0], np.concatenate(truth)
        (trained, rows), (unseen, of_unseen) = self.sets
        people = trained.patients[rows]
        choosing = np.isin(people, np.unique(people)[::5])
        self.parts = Parts(
            np.flatnonzero(~choosing), np.flatnonzero(choosing), np.arange(len(rows), len(rows) + len(of_unseen))
        )
        self.patients = unseen.patients[of_unseen]

    def features(self, encoder: LoadedEncoder) -> np.ndarray:
        """float32 (n, F) of the records of both sets, one after the other."""
        asked = EmbedOptions(with_features=True, threads=1)
        found = [embed_set([encoder], each, rows, asked)[0].features for each, rows in self.sets]
        return np.concatenate([np.asarray(each) for each in found])

    def probed(self, features: np.ndarray, share: float = 1.0) -> Probed:
        """share: of the labels of the training records that the probe learns from."""
        draws = range(1 if share == 1 else DRAWS)
        scores = np.stack([probe(features, self.truth, self.parts, share, "random", k).scores for k in draws])
        names = tuple((code, code) for code in self.codes)
        scored = ScoredRecords(scores, self.truth[self.parts.test], self.patients, names)
        return Probed(scored, effective_rank(features[self.parts.test]))

    def gain(self, encoder: LoadedEncoder, share: float = 1.0) -> Gain:
        """Of a trained encoder over its own shape with fresh weights of seed 0, which are those that it began with."""
        config = encoder.config
        shape = json.dumps([config.encoder.model_dump(mode="json"), config.data.normalisation], sort_keys=True), share
        if shape not in self.fresh:
            self.fresh[shape] = self.probed(self.features(encoder.untrained()), share)
        fresh, mine = self.fresh[shape], self.probed(self.features(encoder), share)
        return Gain(paired(mine.scored, fresh.scored), mine.rank, fresh.rank)
