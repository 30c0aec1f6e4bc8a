"""Report similarity and the weight of a negative: the formulas at their corners, tiles that are parts of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cardialign.kernels.contrastive.similarity import NegativeTiles, NegativeWeights, Similarity


def test_ramp_falls_linearly_between_low_and_high() -> None:
    weights = NegativeWeights("ramp", low=0.25, high=0.75)
    s = torch.tensor([-1.0, 0.25, 0.5, 0.75, 1.0])
    assert torch.allclose(weights.alpha(s), torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))


def test_exponential_decays_from_low_and_is_cut_at_high() -> None:
    weights = NegativeWeights("exponential", low=0.25, high=0.75, gamma=2.0)
    s = torch.tensor([-1.0, 0.25, 0.5, 0.7499, 0.75, 1.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 0.6065306597, 0.3679530, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(weights.alpha(s), expected, atol=1e-6)


def test_alpha_leaves_the_similarities_as_they_were() -> None:
    s = torch.tensor([0.1, 0.5, 0.9])
    for form in ("ramp", "exponential", "none"):
        NegativeWeights(form).alpha(s)
    assert torch.equal(s, torch.tensor([0.1, 0.5, 0.9]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.8, "high": 0.8}, "not below high"),
        ({"gamma": 0.0}, "gamma 0"),
        ({"form": "step"}, "ramp, exponential"),
    ],
)
def test_weights_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeWeights(**change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("euclid", torch.zeros(2, 2)), "cosine, jaccard, none"),
        (("cosine", None), "needs features"),
        (("jaccard", torch.zeros(2)), r"got \(2,\)"),
        (("none", None, torch.zeros(2)), "duplicate_key must be integers"),
    ],
)
def test_a_similarity_that_cannot_be_computed_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Similarity(*arguments)


def test_jaccard_is_shared_over_all_statements_and_zero_for_two_empty_reports() -> None:
    features = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    # alpha = 1 - S on this ramp
    tiles = NegativeTiles(*2 * [Similarity("jaccard", features)], NegativeWeights("ramp", low=0.0, high=1.0))
    alpha = tiles.alpha(slice(0, 5), slice(0, 5))
    assert alpha is not None
    s = 1 - alpha
    assert float(s[0, 1]) == pytest.approx(1 / 3)
    assert float(s[0, 3]) == pytest.approx(1)
    assert float(s[0, 2]) == 0
    assert float(s[2, 4]) == 0


@pytest.mark.parametrize("kind", ["cosine", "jaccard"])
def test_tiles_are_parts_of_the_whole(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if kind == "cosine":
        features = F.normalize(torch.randn(20, 5, generator=generator, dtype=torch.float64), dim=1)
    else:
        features = (torch.rand(20, 5, generator=generator) < 0.4).double()
    similarity = Similarity(kind, features, torch.randint(-1, 9, (20,), generator=generator))  # type: ignore[arg-type]
    tiles = NegativeTiles(similarity, similarity, NegativeWeights("exponential", 0.1, 0.6))
    whole, part = tiles.alpha(slice(0, 20), slice(0, 20)), tiles.alpha(slice(3, 9), slice(11, 20))
    assert whole is not None and part is not None
    assert torch.allclose(part, whole[3:9, 11:20], atol=1e-12)
    assert torch.allclose(whole, whole.T, atol=1e-12)


def test_nothing_to_weigh_is_known_before_any_tile_is_made() -> None:
    key = torch.arange(3)
    assert NegativeTiles(Similarity(), Similarity(), NegativeWeights()).trivial
    assert NegativeTiles(*2 * [Similarity("none", None, key)], NegativeWeights(drop_duplicates=False)).trivial
    assert not NegativeTiles(*2 * [Similarity("none", None, key)], NegativeWeights()).trivial


def test_features_never_carry_a_graph_into_the_loss() -> None:
    assert Similarity("cosine", torch.ones(2, 2, requires_grad=True) * 2).features.requires_grad is False  # type: ignore[union-attr]
