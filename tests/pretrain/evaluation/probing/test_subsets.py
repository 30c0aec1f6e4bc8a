"""Parts of the training records: as large as they say, every class in them where it can be, the published one exact."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cardialign.pretrain.evaluation.probing.subsets import subset


def truth(n: int = 2000) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.uniform(size=(n, 5)) < np.array([0.5, 0.2, 0.05, 0.01, 0.002])


@pytest.mark.parametrize("style", ["random", "stratified", "published-42"])
@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_a_part_has_its_share_of_distinct_records(style: str, share: float) -> None:
    rows = subset(truth(), share, style, seed=3)
    assert len(rows) == share * 2000 and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 2000


@pytest.mark.parametrize(("n", "share"), [(100, 0.1), (1234, 0.01), (57, 0.333)])
def test_the_published_part_is_that_of_scikit_learn(n: int, share: float) -> None:
    expected, _ = train_test_split(np.arange(n), train_size=share, random_state=42)
    for seed in (0, 1):
        np.testing.assert_array_equal(subset(truth(n), share, "published-42", seed), np.sort(expected))


def test_stratified_parts_keep_every_class_and_its_rate() -> None:
    labels = truth()
    for seed in range(5):
        rows = subset(labels, 0.01, "stratified", seed)
        found, wanted = labels[rows].sum(axis=0), 0.01 * labels.sum(axis=0)
        assert (found >= np.maximum(1, np.floor(wanted))).all()
        assert abs(found[0] - wanted[0]) <= 4, "a common class is not crowded out by rare ones"
    assert (truth()[subset(truth(), 0.01, "random", 0)].sum(axis=0) == 0).any(), "chance loses rare classes"


@pytest.mark.parametrize("style", ["random", "stratified"])
def test_a_seed_decides_the_part(style: str) -> None:
    first, again, other = (subset(truth(), 0.1, style, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_share_of_a_hundred_records_is_as_many_records_as_it_has_percent(percent: int) -> None:
    for style in ("random", "stratified"):
        assert len(subset(truth(100)[:, :1], percent / 100, style, 0)) == percent


@pytest.mark.parametrize(("share", "style"), [(0.0, "random"), (1.5, "random"), (float("nan"), "random"), (0.5, "x")])
def test_no_part_at_all_is_refused(share: float, style: str) -> None:
    with pytest.raises(ValueError, match=r"share is|unknown style"):
        subset(truth(), share, style, 0)
