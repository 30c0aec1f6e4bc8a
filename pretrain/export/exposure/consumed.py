"""Which rows a run has read by a checkpoint: its order computed again, and held against the digest that it kept."""

from __future__ import annotations

import logging

import numpy as np

from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.stream.stream import EMPTY_DIGEST, chain_digest

log = logging.getLogger(__name__)

MOST_STEPS, MOST_READS = 200_000, 1 << 26
"""Of a run that is gone through again: about a minute of one core."""


def consumed_rows(order: Order, steps: int, digest: str) -> np.ndarray | None:
    """The sorted rows of batches 0..steps-1, when their chained digest is `digest`.

    None when it is another one, as of a run that has put other records in the place of unreadable ones, and for a run
    that is too long to be gone through.
    """
    if steps > MOST_STEPS or steps * order.global_batch > MOST_READS:
        log.info("exposure=selected reason=%d steps are too many to be gone through again", steps)
        return None
    read = np.zeros(int(order.rows.max()) + 1, dtype=bool)
    found = EMPTY_DIGEST
    for step in range(steps):
        rows = order.batch(step)
        read[rows] = True
        found = chain_digest(found, rows)
    if found != digest:
        log.info("exposure=selected reason=the batches of the run are not those of its order alone")
        return None
    return np.flatnonzero(read)
