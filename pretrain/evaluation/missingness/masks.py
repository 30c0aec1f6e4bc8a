"""What may be missing of a record, and masks of it: leads, times, or cells of both, to an exact number of them.

A mask is bool (12, T), True = missing. Whatever draws or searches masks does so in units: one lead, one stretch of time
in all leads, or one stretch of one lead. All units of a kind are of one size, so two masks of equally many units have
an equal budget. Legend: U units, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec

LEADS = len(STANDARD_LEADS)
TIME_SECONDS = 0.5
"""Of a unit of time: a token of SCAR-R."""
CELL_SECONDS = 2.0
"""Of a unit of one lead: 60 cells in ten seconds, which a search can try one by one."""
KINDS = ("leads", "time", "cells")


@dataclass(frozen=True)
class Units:
    """The pieces in which records of one length can be missing. lead (U,), -1 = all; start, stop (U,) in samples."""

    kind: str
    samples: int
    lead: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.lead)

    def mask(self, chosen: np.ndarray) -> np.ndarray:
        """chosen bool (..., U) -> missing bool (..., 12, T)."""
        out = np.zeros((*chosen.shape[:-1], LEADS, self.samples), dtype=bool)
        for unit in range(len(self)):
            where = slice(None) if self.lead[unit] < 0 else self.lead[unit]
            part = out[..., where, self.start[unit] : self.stop[unit]]
            part |= chosen[..., unit, None, None] if self.lead[unit] < 0 else chosen[..., unit, None]
        return out

    def recorded(self, there: np.ndarray) -> Units:
        """Those that hold a recorded sample, there bool (12, T): nothing else can be taken away. All of a blank one."""
        kept = np.array([there[self.mask(one)].any() for one in np.eye(len(self), dtype=bool)])
        if not kept.any() or kept.all():
            return self
        return replace(self, lead=self.lead[kept], start=self.start[kept], stop=self.stop[kept])

    def budget(self, share: float) -> int:
        """Units that a share of the record is: rounded, at least one and at most all but one."""
        return int(np.clip(math.floor(share * len(self) + 0.5), 1, max(1, len(self) - 1)))


def units_of(kind: str, spec: SignalSpec) -> Units:
    """The units of a kind. Raises UsageError for a kind that is not there, and a record too short to lose half."""
    if kind not in KINDS:
        raise UsageError(f"nothing is missing by {kind!r:.40}", f"choose of {', '.join(KINDS)}")
    seconds = {"leads": spec.seconds, "time": TIME_SECONDS, "cells": CELL_SECONDS}[kind]
    length = max(1, round(seconds * spec.sampling_rate))
    count = max(1, spec.samples // length)
    if kind == "time" and count < 2:
        raise UsageError(
            f"records of {spec.seconds:g} s have no stretch of {seconds:g} s to miss", "leave out the kind `time`"
        )
    start = np.arange(count) * length
    stop = np.append(start[1:], spec.samples)  # what is left at the end belongs to the last
    leads = np.array([-1]) if kind == "time" else np.arange(LEADS)
    lead = np.repeat(leads, count)
    return Units(kind, spec.samples, lead, np.tile(start, len(leads)), np.tile(stop, len(leads)))


def random_units(units: Units, budget: int, seed: int, row: int, draw: int = 0) -> np.ndarray:
    """bool (U,) with `budget` True, every choice equally likely: a function of (seed, kind, row of the set, draw)."""
    generator = np.random.default_rng([seed, KINDS.index(units.kind), row, draw])
    return highest(generator.random(len(units)), budget)


def highest(scores: np.ndarray, budget: int) -> np.ndarray:
    """bool (..., U): the `budget` units of the highest scores (..., U), of equal ones the first."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.asarray(np.argsort(order, axis=-1, kind="stable") < budget)


def lead_units(leads: Sequence[str]) -> np.ndarray:
    """bool (12,): the units `leads` of these names."""
    return np.isin(np.array(STANDARD_LEADS), leads)


def recorded_samples(lead_mask: np.ndarray, valid: int, samples: int) -> np.ndarray:
    """bool (12, T) of a record: what was recorded. lead_mask (12,), valid samples from its start."""
    return np.asarray(lead_mask)[:, None] & (np.arange(samples) < valid)


def mean_by_unit(values: np.ndarray, units: Units, there: np.ndarray) -> np.ndarray:
    """(U,): the mean of values (12, T) over what was recorded of each unit, there bool (12, T); -inf: nothing was."""
    parts = [units.mask(one) & there for one in np.eye(len(units), dtype=bool)]
    return np.array([values[part].mean(dtype=np.float64) if part.any() else -np.inf for part in parts])
