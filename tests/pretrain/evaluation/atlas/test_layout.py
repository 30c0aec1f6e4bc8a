"""A map keeps neighbours, comes out the same every time, and is turned, never bent."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.atlas.layout import places, turned_onto, usual_perplexity


def groups(per_group: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around three directions at right angles in eight dimensions."""
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(3), per_group)
    rows = np.eye(8)[of] + rng.normal(0, 0.05, (len(of), 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), of


def test_what_is_near_in_the_embedding_is_near_on_the_map_and_comes_out_the_same_twice() -> None:
    rows, of = groups()
    found = places(rows, seed=4)
    assert found.shape == (60, 2) and np.abs(found.mean(axis=0)).max() < 1e-9
    apart = np.linalg.norm(found[:, None] - found[None, :], axis=-1)
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :5]
    assert (of[nearest] == of[:, None]).mean() > 0.98
    assert trustworthiness(rows, found, n_neighbors=5) > 0.9
    np.testing.assert_array_equal(found, places(rows, seed=4))


def test_a_map_is_turned_and_mirrored_onto_another_and_keeps_every_distance() -> None:
    own = np.random.default_rng(0).normal(size=(30, 2))
    own -= own.mean(axis=0)
    angle = 2.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, -1])
    np.testing.assert_allclose(turned_onto(own @ turn, own), own, atol=1e-12)
    other = np.random.default_rng(1).normal(size=(30, 2))
    turned = turned_onto(own, other)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(own, axis=1))


def test_what_makes_no_map_is_told() -> None:
    rows, _ = groups()
    with pytest.raises(UserError, match=r"9 records make no map"):
        places(rows[:9])
    with pytest.raises(UserError, match="perplexity of 60 does not go with 60 records"):
        places(rows, perplexity=60)
    with pytest.raises(UserError, match="says the same of every record"):
        places(np.tile(rows[:1], (60, 1)))
    assert usual_perplexity(1000) == 30 and usual_perplexity(31) == 10
