"""CPU seconds of a linear probe on one core, apart from the encoder: made-up features with planted labels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cardialign.pretrain.evaluation.probing.linear_probe import Parts, neighbours, probe
from cardialign.pretrain.evaluation.probing.one_thread import one_thread

PATTERNS = 64
"""Directions in which the features vary much, as those of encoders do: few of many."""


def made_up(records: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Parts]:
    """Correlated features float32 (n, F), labels bool (n, C) from frequent to rare, parts of 80, 10 and 10 %."""
    draw = np.random.default_rng(seed)
    inner = draw.normal(size=(records, PATTERNS)) * np.geomspace(10, 0.5, PATTERNS)
    features = inner @ draw.normal(size=(PATTERNS, width)) + draw.normal(size=(records, width))
    signs = inner @ draw.normal(size=(PATTERNS, classes)) + 10 * draw.normal(size=(records, classes))
    truth = signs > np.quantile(signs, 1 - np.geomspace(0.4, 0.01, classes), axis=0).diagonal()
    first, second = int(0.8 * records), int(0.9 * records)
    places = np.arange(records)
    return features.astype(np.float32), truth, Parts(places[:first], places[first:second], places[second:])


def time_probe(records: int, width: int, classes: int, shares: tuple[float, ...]) -> list[dict[str, Any]]:
    """CPU seconds of one whole probe (13 penalties fitted, one chosen, test records scored), and of neighbours."""
    features, truth, parts = made_up(records, width, classes)
    rows = []
    with one_thread():
        for name, read in (("linear probe", probe), ("nearest neighbours", neighbours)):
            for share in shares:
                started = time.process_time()
                found = read(features, truth, parts, share)
                rows.append(
                    {
                        "read_by": name,
                        "share": share,
                        "records": found.records,
                        "seconds": time.process_time() - started,
                        "validation": found.validation,
                    }
                )
    return rows
