"""The table of the most distant reports at 180,000 reports: its time and memory, in a process of its own, beside whole
rows of similarities.

All row tiles do the same work (R columns each), so a few of them, spread over the table, are timed and the whole is
their mean times their number.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.benchmarks.material import Material, Measurement
from cardialign.data_shards.benchmarks.process import PeakMemory, measured_by
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.benchmarks.text import Vectors, phrase_vectors
from cardialign.data_shards.text.distant import COLUMN_TILE, NEIGHBOURS, ROW_TILE, most_distant_of

TILES = 2
PLAIN_ROWS = 256
"""Rows whose similarities to all reports are held and sorted at once, as the plain way does with all rows."""
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

ROWS = (
    Row("table of the 64 most distant of 180,000 reports, from some of its row tiles", "distant_core_minutes",
    "core-minutes",
        lower_is_better=True, against={"whole rows, argpartition": "distant_plain_core_minutes"}),
    Row("... memory beside the vectors", "distant_peak_mb", "MB", lower_is_better=True,
        against={"whole matrix (computed)": "distant_matrix_mb"}),
)  # fmt: skip


def measure_distant(material: Material) -> Measurement:
    def figures() -> dict[str, float]:
        reports = material.sizes.distant_reports
        vectors = Vectors(phrase_vectors(material), reports, material.seed)
        path = material.folder / "vectors.npy"
        np.save(path, vectors.centred(np.arange(reports)))
        del vectors
        found = measured_by(__name__, str(path), **ONE_CORE)
        path.unlink()
        return found

    return Measurement(figures=figures, rows=ROWS)


def time_and_memory(path: Path) -> dict[str, float]:
    """Core-minutes of the whole table and MB at the peak, from row tiles of the vectors float32 (R, d) in the file,
    which stay memory-mapped."""
    vectors = load_array(path, mapped=True)
    reports = len(vectors)
    k, tile = min(NEIGHBOURS, reports - 1), min(ROW_TILE, reports)
    tops = [int(top) for top in np.linspace(0, reports - tile, TILES)]
    np.asarray(vectors).sum()  # pages come from the disk now
    seconds, rows = 0.0, np.empty(0)
    with PeakMemory() as peak:
        for top in tops:
            started = time.process_time()
            rows = np.ascontiguousarray(vectors[top : top + tile])
            most_distant_of(rows, top, vectors, k, COLUMN_TILE)
            seconds += time.process_time() - started
    started = time.process_time()
    few = rows[:PLAIN_ROWS]
    similarity = few @ vectors.T
    similarity[np.arange(len(few)), tops[-1] + np.arange(len(few))] = np.inf
    nearest = np.argpartition(similarity, k - 1, axis=1)[:, :k]
    np.take_along_axis(nearest, np.argsort(np.take_along_axis(similarity, nearest, axis=1), axis=1), axis=1)
    plain_seconds = time.process_time() - started
    return {
        "distant_reports": reports,
        "distant_dim": vectors.shape[1],
        "distant_tiles_measured": len(tops),
        "distant_core_minutes": seconds / len(tops) * reports / tile / 60,
        "distant_plain_core_minutes": plain_seconds / len(few) * reports / 60,
        "distant_peak_mb": peak.mib * 2**20 / 1e6,
        "distant_matrix_mb": 4 * reports**2 / 1e6,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_and_memory(Path(sys.argv[1]))) + "\n")
