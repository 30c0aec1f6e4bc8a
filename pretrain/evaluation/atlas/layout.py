"""Places of records on a plane, so that neighbours in the embedding are neighbours on paper (t-SNE).

A place says who is near; distances between groups, their sizes and the directions of the axes say nothing (van der
Maaten and Hinton 2008). Legend: n records, e embedding_dim.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import orthogonal_procrustes

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.probing.one_thread import one_thread

FEWEST = 10
"""With fewer records there is nothing to see."""
PERPLEXITY = 30.0
ONE_PLACE = 1e-6
"""Embeddings whose every number differs by less, as standard deviation, are all the same."""


def usual_perplexity(records: int) -> float:
    """30, and less where there are few records: each has about three times as many neighbours that count."""
    return min(PERPLEXITY, (records - 1) / 3)


def places(embedding: np.ndarray, *, seed: int = 0, perplexity: float | None = None) -> np.ndarray:
    """float64 (n, 2), centred, by t-SNE of embedding (n, e) of unit rows, whose distance grows as their cosine falls.

    It starts from the first two principal components, and runs on one thread: the same numbers come out every time.
    Raises UserError for fewer than `FEWEST` records, a perplexity that they do not allow, and an encoder that says the
    same of all of them.
    """
    from sklearn.manifold import TSNE

    count = len(embedding)
    if count < FEWEST:
        raise UserError(
            f"{count} record{'s' * (count != 1)} make no map", f"choose at least {FEWEST}: more folds, or no --split"
        )
    wanted = usual_perplexity(count) if perplexity is None else perplexity
    if not 1 <= wanted < count:
        raise UserError(
            f"a perplexity of {wanted:g} does not go with {count} records",
            f"give a number from 1 to less than {count}, or leave --perplexity out",
        )
    exact = np.asarray(embedding, dtype=np.float64)
    if exact.std(axis=0).max() < ONE_PLACE:
        raise UserError(
            "the encoder says the same of every record: there is nothing to map", "train it further, or take another"
        )
    with one_thread():
        model = TSNE(perplexity=wanted, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
        found: np.ndarray = model.fit_transform(exact).astype(np.float64)
    centred: np.ndarray = found - found.mean(axis=0)
    return centred


def turned_onto(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """own (n, 2) turned and mirrored, never stretched, to lie as well as it can on other (n, 2) of the same records.

    The directions of both are arbitrary; so turned, a reader finds the same records in about the same corner
    (Schönemann 1966).
    """
    rotation, _ = orthogonal_procrustes(own, other)
    turned: np.ndarray = own @ rotation
    return turned
