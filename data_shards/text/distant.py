"""For every distinct report the k reports that say the most different things: where negatives come from that are surely
negatives.

Used for nearest-neighbour negative sampling (N3S, D-BETA): with 180 k reports of 3,800 phrases a random report is often
nearly the same one. R x R similarities are never held: row tiles walk over column tiles, and only what beats a row's
k-th best so far is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from cardialign.data_shards.errors import UsageError, disk_error
from cardialign.data_shards.files import temporary_path
from cardialign.data_shards.text.bank import TextBank, distant_name
from cardialign.data_shards.text.bank_files import commit_derived

log = logging.getLogger(__name__)

NEIGHBOURS = 64
ROW_TILE, COLUMN_TILE = 1024, 8192
"""One tile of similarities is 32 MB of float32, whatever R is."""

Progress = Callable[[int, int], None]


def most_distant(
    vectors: np.ndarray,
    k: int = NEIGHBOURS,
    *,
    row_tile: int = ROW_TILE,
    column_tile: int = COLUMN_TILE,
    progress: Progress | None = None,
) -> np.ndarray:
    """Unit rows float32 (R, d) -> int32 (R, min(k, R - 1)): the other rows of least cosine, the most distant first.

    Exact in float32; among equal cosines the lower row comes first.
    progress(rows done, rows). Raises UsageError for k < 1 and ValueError for vectors that are not (R, d).
    """
    if k < 1:
        raise UsageError(f"{k} distant reports are asked for", "ask for at least 1")
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (R, d), got {vectors.shape}")
    reports = len(vectors)
    k = min(k, reports - 1)
    table = np.zeros((reports, k), dtype=np.int32)
    for top in range(0, reports if k else 0, row_tile):
        rows = np.ascontiguousarray(vectors[top : top + row_tile], dtype=np.float32)
        table[top : top + row_tile] = most_distant_of(rows, top, vectors, k, column_tile)
        if progress is not None:
            progress(min(top + row_tile, reports), reports)
    return table


def most_distant_of(rows: np.ndarray, top: int, vectors: np.ndarray, k: int, column_tile: int) -> np.ndarray:
    """One row tile of `most_distant`: for `rows` float32 (m, d), which are `vectors[top : top + m]`, int32 (m, k).

    1 <= k < R.
    """
    m = len(rows)
    values = np.full((m, k), np.inf, dtype=np.float32)
    ids = np.full((m, k), -1, dtype=np.int32)
    for left in range(0, len(vectors), column_tile):
        tile = rows @ np.asarray(vectors[left : left + column_tile], dtype=np.float32).T
        own = np.arange(max(top, left), min(top + m, left + tile.shape[1]))
        tile[own - top, own - left] = np.inf  # a report is not its own negative
        if left == 0 and tile.shape[1] > k:  # nothing is held yet: only the k best of the first tile are worth sorting
            beaten = tile <= np.partition(tile, k - 1, axis=1)[:, k - 1 : k]
        else:
            beaten = tile < values[:, -1:]  # a tie stays with the lower row, which was met first
        found, column = np.nonzero(beaten)
        values, ids = _merge(values, ids, found, tile[found, column], (column + left).astype(np.int32))
    return ids


def _merge(
    values: np.ndarray, ids: np.ndarray, row: np.ndarray, value: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest per row of what is held (m, k) and what was found (parallel lists), ordered by value, then by
    id."""
    if not row.size:
        return values, ids
    k = values.shape[1]
    touched = np.unique(row)
    all_rows = np.concatenate([np.repeat(touched, k), row])
    all_values = np.concatenate([values[touched].ravel(), value])
    all_ids = np.concatenate([ids[touched].ravel(), column])
    order = np.lexsort((all_ids, all_values, all_rows))
    starts = np.searchsorted(all_rows[order], touched)
    chosen = order[starts[:, None] + np.arange(k)]
    values[touched], ids[touched] = all_values[chosen], all_ids[chosen]
    return values, ids


def build_distant(bank: TextBank, k: int = NEIGHBOURS, progress: Progress | None = None) -> np.ndarray:
    """Make the table from centred embeddings and commit it by rename beside the bank's arrays; one that is there is
    opened.

    Raises DataError when the disk is full (the vectors stand in a mapped file meanwhile, so that memory does not grow
    with R).
    """
    path = bank.path / distant_name(k)
    if path.exists():
        return bank.distant(k)
    scratch = temporary_path(path).with_suffix(".vectors")
    try:
        vectors = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=(len(bank), bank.dim))
        for at in range(0, len(bank), COLUMN_TILE):
            vectors[at : at + COLUMN_TILE] = bank.centred(np.arange(at, min(at + COLUMN_TILE, len(bank))))
        table = most_distant(vectors, k, progress=progress)
        bank.description = commit_derived(bank.path, path.name, table)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        scratch.unlink(missing_ok=True)
    log.info("distant_reports path=%s reports=%d k=%d", path, *table.shape)
    return bank.distant(k)
