"""RankMe: how many directions an encoder's embeddings use. It asks for no labels and no reports."""

from __future__ import annotations

import numpy as np


def effective_rank(embedding: np.ndarray) -> float:
    """exp of the entropy of the singular values of (n, E), which sum to 1: from 1 (a collapsed encoder) to min(n, E).

    Roy & Vetterli 2007; as a criterion for encoders Garrido et al., ICML 2023. Raises ValueError when there is nothing
    to decompose.
    """
    sizes = np.linalg.svd(np.asarray(embedding, dtype=np.float64), compute_uv=False)
    total = float(sizes.sum())
    if not np.isfinite(total) or total <= 0:
        raise ValueError("the embeddings are all zero, or not finite")
    share = sizes[sizes > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
