"""Scores that are kept beside results: every result has a file of its own, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.comparison.results import read_values
from cardialign.cluster.evaluations.kept import Evaluation, scores_beside, write_with_scores
from cardialign.pretrain.evaluation.scored import ScoredRecords


def evaluation(seed: int) -> Evaluation:
    scores = np.random.default_rng(seed).normal(size=(1, 6, 1)).astype(np.float32)
    truth = np.array([[True], [False]] * 3)
    scored = ScoredRecords(scores, truth, np.arange(6), (("AF", "Atrial fibrillation"),), records="0" * 64)
    return Evaluation("zero-shot:x", {"kind": "zero-shot"}, scored, "encoder", "shards")


@pytest.mark.parametrize("names", [("zs-1.0", "zs-1.5"), ("a.json", "a.txt"), ("run.v1.json", "run.v2.json")])
def test_results_whose_names_differ_behind_a_dot_keep_scores_of_their_own(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for seed, name in enumerate(names):
        write_with_scores(tmp_path / name, {"macro": 0.5}, [evaluation(seed)])
    for seed, name in enumerate(names):
        (kept,) = scores_beside(tmp_path / name, read_values(tmp_path / name))
        np.testing.assert_array_equal(kept.scored.scores, evaluation(seed).scored.scores)
