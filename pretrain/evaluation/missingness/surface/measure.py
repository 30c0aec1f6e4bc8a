"""Scores of records of which leads and time are missing: a grid of both, and the leads of small devices.

Legend: n records, C classes, D draws, K numbers of leads, H shares of time, P presets.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.cohort.evidence import evidence_leads
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import Progress
from cardialign.pretrain.evaluation.missingness.surface.hidden import LEADS, among, drawn, leads_left, shown, time_left
from cardialign.pretrain.evaluation.missingness.surface.presets import PRESETS, Preset, presets_of
from cardialign.pretrain.evaluation.missingness.surface.scorers import Ranked, Scorer
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)
NUMBERS, SHARES = (0, 1, 3, 6, 9, 11), (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class SurfacePlan:
    """leads: how many are missing in all, 0 to 11; time: which share of the recording is, at least 0 and below 1. Both
    begin with 0. evidence: the grid also with the leads of each class's primary evidence gone first. draws: random
    masks of each record and cell.
    """

    leads: tuple[int, ...] = NUMBERS
    time: tuple[float, ...] = SHARES
    presets: tuple[Preset, ...] = presets_of(tuple(PRESETS))
    evidence: bool = False
    draws: int = 3
    seed: int = 0
    batch_size: int = 64
    threads: int = 2

    def __post_init__(self) -> None:
        for number in self.leads:
            if not 0 <= number < LEADS:
                raise UsageError(
                    f"{number} of {LEADS} leads cannot be missing",
                    "give numbers from 0 to 11: of all leads missing there is nothing to say",
                )
        for share in self.time:
            if not (math.isfinite(share) and 0 <= share < 1):
                raise UsageError(
                    f"{100 * share:g} % of the time cannot be missing",
                    "give shares of at least 0 and below 100 percent",
                )
        for name in ("leads", "time"):
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(sorted({type(given[0])(0), *given})) if given else (0,))

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Places (of leads, of time) of all cells but the whole record."""
        return [(k, h) for k in range(len(self.leads)) for h in range(len(self.time)) if k or h]


@dataclass(frozen=True)
class SurfaceScores:
    """Scores float32 of one encoder.

    whole (n, C); random (K, H, D, n, C); presets (P, n, C); evidence (K, H, n, C), NaN for a class without such leads,
    None where it was not asked for.
    """

    whole: np.ndarray
    random: np.ndarray
    presets: np.ndarray
    evidence: np.ndarray | None
    seconds: float


def evidence_of(codes: Sequence[str]) -> np.ndarray:
    """bool (C, 12): the leads of each class's primary evidence; none where they are not known."""
    return np.stack([among(evidence_leads(code)) for code in codes])


def check_evidence(ranked: Ranked) -> None:
    """Raises UserError where no class that can be ranked has leads of its own."""
    if not evidence_of(ranked.codes).any():
        raise UserError(
            f"of no class of {ranked.name} it is known in which leads its primary evidence stands: "
            f"{', '.join(ranked.codes[:8])}",
            "leave --evidence out, or evaluate findings of virtual patients (virtual-findings-v2)",
        )


def check_leads(encoder: UsableEncoder, plan: SurfacePlan) -> None:
    """Whether something is left of each record for the encoder. Raises UserError."""
    reads, name = encoder.leads_read, f"encoder {encoder.digest[:12]}"
    for preset in plan.presets:
        if not set(reads) & set(preset.leads):
            raise UserError(
                f"{name} reads {', '.join(reads)}: none of these is in preset {preset.name}",
                "leave that preset out of --presets",
            )
    if len(reads) < LEADS and max(plan.leads) > 0:
        raise UserError(
            f"{name} reads {len(reads)} of {LEADS} leads ({', '.join(reads)}): with leads missing at random there may "
            "be nothing left for it",
            "give --leads-missing 0, and in --presets those of its leads that are there",
        )
    if encoder.needs_all_leads and (max(plan.leads) > 0 or plan.presets):
        raise UserError(
            f"{name} refuses records with missing leads: its contract says missing_leads: refuse",
            "write `missing_leads: zeros` where it was trained so; or give --leads-missing 0 --presets none",
        )


def having_leads(ranked: Ranked, shard_set: ShardSet, presets: Sequence[Preset]) -> Ranked:
    """The records that have a lead of every preset. Raises UserError where none does. Only the index is read."""
    masks = shard_set.lead_masks(ranked.rows)
    lacking = {each.name: ~(masks & among(each.leads)).any(axis=1) for each in presets}
    fit = ~np.any(list(lacking.values()), axis=0) if lacking else np.ones(len(masks), dtype=bool)
    if not fit.any():
        worst = max(lacking, key=lambda name: int(lacking[name].sum()))
        raise UserError(
            f"no record of {shard_set.path} has a lead of every preset: {int(lacking[worst].sum())} of {len(masks)} "
            f"have none of {worst}",
            "leave it out of --presets",
        )
    return ranked.only(np.flatnonzero(fit))


def score_surface(
    scorer: Scorer, shard_set: ShardSet, ranked: Ranked, plan: SurfacePlan, progress: Progress | None = None
) -> SurfaceScores:
    """Every record whole, and under every mask of the plan. Each has a lead of every preset (`having_leads`).

    Raises DataError for a damaged record, UserError where the encoder refuses missing leads.
    """
    started, n, C = time.monotonic(), len(ranked.rows), len(ranked.codes)
    K, H = len(plan.leads), len(plan.time)
    out = SurfaceScores(
        np.empty((n, C), np.float32),
        np.empty((K, H, plan.draws, n, C), np.float32),
        np.empty((len(plan.presets), n, C), np.float32),
        np.full((K, H, n, C), np.nan, np.float32) if plan.evidence else None,
        0.0,
    )
    done = 0
    for batch in iterate_rows(shard_set, ranked.rows, plan.batch_size, plan.threads):
        here = slice(done, done + len(batch.rows))
        _score_batch(_Batch.of(batch, shard_set, ranked), scorer, ranked, plan, out, here)
        done = here.stop
        if progress is not None:
            progress(done, n)
    seconds = time.monotonic() - started
    log.info("surface records=%d cells=%d draws=%d seconds=%.1f", n, len(plan.cells), plan.draws, seconds)
    return SurfaceScores(out.whole, out.random, out.presets, out.evidence, seconds)


@dataclass(frozen=True)
class _Batch:
    rows: np.ndarray
    signal: np.ndarray
    lead_mask: np.ndarray
    valid: np.ndarray
    ages: np.ndarray

    @classmethod
    def of(cls, batch: Batch, shard_set: ShardSet, ranked: Ranked) -> _Batch:
        valid, T = batch.valid_samples.astype(np.int64), batch.signal.shape[-1]
        if ranked.first_seconds is not None:
            valid = np.minimum(valid, max(1, round(ranked.first_seconds * shard_set.spec.sampling_rate)))
        signal = np.where(np.arange(T) < valid[:, None, None], batch.signal, np.float32(0))
        return cls(batch.rows, signal, batch.lead_mask, valid, batch.age_years)

    def score(self, scorer: Scorer, lead_mask: np.ndarray, share: float, place: np.ndarray) -> np.ndarray:
        signal, valid = time_left(self.signal, self.valid, share, place)
        return scorer(self.ages, shown(signal, lead_mask), lead_mask, valid)


def _score_batch(
    batch: _Batch, scorer: Scorer, ranked: Ranked, plan: SurfacePlan, out: SurfaceScores, here: slice
) -> None:
    nowhere = np.zeros(len(batch.rows))
    out.whole[here] = batch.score(scorer, batch.lead_mask, 0.0, nowhere)
    for p, preset in enumerate(plan.presets):
        left = batch.lead_mask & among(preset.leads)
        out.presets[p, here] = batch.score(scorer, left, 0.0, nowhere)
    for d in range(plan.draws):
        rank, place = drawn(batch.rows, plan.seed, d)
        out.random[0, 0, d, here] = out.whole[here]
        for k, h in plan.cells:
            left = leads_left(batch.lead_mask, rank, plan.leads[k])
            out.random[k, h, d, here] = batch.score(scorer, left, plan.time[h], place)
    if out.evidence is None:
        return
    evidence, (rank, place) = evidence_of(ranked.codes), drawn(batch.rows, plan.seed, 0)
    for first in np.unique(evidence[evidence.any(axis=1)], axis=0):
        columns = np.flatnonzero((evidence == first).all(axis=1))
        out.evidence[0, :, here, columns] = np.moveaxis(out.random[0, :, 0, here][:, :, columns], 2, 0)
        for k, h in plan.cells:
            if k:
                left = leads_left(batch.lead_mask, rank, plan.leads[k], first)
                found = batch.score(scorer, left, plan.time[h], place)
                out.evidence[k, h, here, columns] = found[:, columns].T
