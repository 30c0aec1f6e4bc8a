"""Words follow what they stand for, step by step as on paper, and start where vectors are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.pretrain.methods.parts.codebook import Codebook, k_means, words_in_use
from tests.support.processes import run_ranks

V, D, DECAY = 5, 3, 0.9


def vectors(n: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.sqrt((row**2).sum())


def book(words: torch.Tensor) -> Codebook:
    made = Codebook(V, D, DECAY).double()
    made.words.copy_(words)
    made.started.fill_(1)
    return made


def test_a_vector_has_the_word_with_the_largest_cosine() -> None:
    words, asked = vectors(V, 1), vectors(40)
    wanted = [max(range(V), key=lambda k: float(asked[n] @ words[k])) for n in range(40)]
    assert book(words).nearest(asked).tolist() == wanted and len(set(wanted)) > 2
    assert book(words).nearest(asked[:0]).tolist() == []


def test_names_are_no_matter_of_bf16() -> None:
    said, made = vectors(400).float(), Codebook(64, D, DECAY)
    plain = made.nearest(said)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.nearest(said), plain)
        assert not torch.equal((said @ made.words.T).argmax(dim=1), plain), "bf16 cannot tell all of them apart"


def test_three_updates_are_those_of_a_run_by_hand_and_a_word_that_nobody_said_stays() -> None:
    words = vectors(V, 1)
    words[3] = -vectors(1, 2)[0]
    made = book(words)
    by_hand = words.numpy().copy()
    for step in range(3):
        said = vectors(60, 10 + step)
        said = said[(said @ torch.from_numpy(by_hand[3]) < 0.2)]  # none near word 3, unless no other is nearer
        chosen = made.nearest(said)
        said, chosen = said[chosen != 3], chosen[chosen != 3]
        made.follow(made.heard(said, chosen))
        for k in range(V):
            own = said.numpy()[[int(c) == k for c in chosen]]
            if len(own):
                by_hand[k] = unit(DECAY * by_hand[k] + (1 - DECAY) * unit(own.mean(axis=0)))
        np.testing.assert_allclose(made.words.numpy(), by_hand, rtol=1e-12, atol=1e-14)
    assert np.array_equal(made.words[3].numpy(), words[3].numpy())
    assert not np.allclose(made.words[0].numpy(), words[0].numpy())


def test_a_book_starts_with_k_means_of_the_first_vectors_and_only_once() -> None:
    said = vectors(50, 3)
    made = Codebook(V, D, DECAY).double()
    made.follow(made.heard(said[:0], made.nearest(said[:0])))
    assert not made.started, "nothing was said"
    means = said.numpy()[[0, 10, 20, 30, 40]].copy()
    for _ in range(10):
        nearest = (said.numpy() @ means.T).argmax(axis=1)
        means = np.stack([unit(said.numpy()[nearest == k].mean(axis=0)) for k in range(V)])
    made.follow(made.heard(said, made.nearest(said)))
    np.testing.assert_allclose(made.words.numpy(), means, rtol=1e-12)
    other = vectors(50, 4)
    made.follow(made.heard(other, made.nearest(other)))
    assert not np.allclose(made.words.numpy(), means) and ((made.words.numpy() * means).sum(axis=1) > 0.95).all()


def test_a_word_that_nobody_said_for_three_updates_becomes_a_vector_of_the_batch() -> None:
    made = book(vectors(V, 1))
    made.revive = 3
    silent = made.words[[1, 4]].clone()
    for step in range(3):
        assert torch.equal(made.words[[1, 4]], silent)
        said = vectors(40, 20 + step)
        made.follow(made.heard(said, torch.tensor([0, 2, 3, 2] * 10)))
    assert torch.equal(made.words[[1, 4]], said[[0, 20]]) and made.idle.tolist() == [0] * V


REVIVE = 2
SAID = (torch.tensor([0, 2, 3, 2] * 10), torch.tensor([0, 2] * 20), torch.tensor([3, 3, 4, 0] * 10))
"""Of every update the words of 40 vectors. Word 1 is silent in all, 4 in the first two, 3 in the second alone."""


def shared_out(rank: int, world: int) -> list[np.ndarray]:
    """Words and idle counts of a rank after each update; the last rank of three has no vector at all."""
    made = book(vectors(V, 1))
    made.revive, seen = REVIVE, []
    ends = {1: [0, 40], 2: [0, 23, 40], 3: [0, 9, 40, 40]}[world]
    own = slice(ends[rank], ends[rank + 1])
    for step, chosen in enumerate(SAID):
        made.follow(made.heard(vectors(40, 20 + step)[own], chosen[own]))
        seen += [made.words.numpy().copy(), made.idle.numpy().copy()]
    return seen


def revived_by_hand() -> list[np.ndarray]:
    words, idle, seen = vectors(V, 1).numpy().copy(), np.zeros(V), []
    for step, chosen in enumerate(SAID):
        said = vectors(40, 20 + step).numpy()
        for k in range(V):
            own = said[(chosen == k).numpy()]
            idle[k] = 0 if len(own) else idle[k] + 1
            words[k] = unit(DECAY * words[k] + (1 - DECAY) * unit(own.mean(axis=0))) if len(own) else words[k]
        dead = [k for k in range(V) if idle[k] >= REVIVE]
        for place, k in enumerate(dead):  # of the whole batch, at even distance
            words[k], idle[k] = said[place * 40 // len(dead)], 0
        seen += [words.copy(), idle.copy()]
    return seen


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2, 3])
def test_words_come_to_life_as_by_hand_on_every_rank_however_the_batch_is_shared_out(world: int) -> None:
    wanted = revived_by_hand()
    assert wanted[3].tolist() == [0, 0, 0, 1, 0] and wanted[5].tolist() == [0, 1, 1, 0, 0]
    assert np.array_equal(wanted[2][[1, 4]], vectors(40, 21).numpy()[[0, 20]]), "both at once, from the second batch"
    for seen in run_ranks(world, shared_out):
        for found, right in zip(seen, wanted, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-14)


def test_clusters_are_found_and_fewer_vectors_than_words_are_all_words() -> None:
    centres = torch.eye(3, dtype=torch.float64)
    near = F.normalize(centres.repeat_interleave(30, dim=0) + 0.1 * vectors(90), dim=1)
    found = k_means(near, 3)
    assert ((found @ centres.T).amax(dim=1) > 0.99).all() and sorted((found @ centres.T).argmax(dim=1)) == [0, 1, 2]
    few = vectors(2)
    assert torch.allclose(k_means(few, 4).unique(dim=0), few.unique(dim=0))


@pytest.mark.parametrize(("counts", "wanted"), [([2, 2, 2, 2], 4.0), ([7, 0, 0, 0], 1.0), ([0, 0, 0, 0], 0.0)])
def test_words_in_use_are_all_of_them_or_one_or_none(counts: list[int], wanted: float) -> None:
    assert float(words_in_use(torch.tensor(counts, dtype=torch.float64))) == pytest.approx(wanted)
