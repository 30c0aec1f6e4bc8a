"""What a trained masker removes of the records of each class, and whether it is where the primary evidence stands.

Of a record with k leads of evidence the masker is asked for k leads, those that it removes most gladly. Found is the
share of these that hold evidence. A masker that chooses by chance finds k / 12, of a record with all leads: one that
was not recorded is neither evidence nor to be chosen. Legend: n records, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shown import between
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import Progress
from cardialign.pretrain.evaluation.missingness.evaluate import Ranking, evidence_of
from cardialign.pretrain.evaluation.missingness.masks import (
    highest,
    mean_by_unit,
    recorded_samples,
    units_of,
)
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import Estimate, mean_over_records
from cardialign.pretrain.evaluation.task import EvaluationTask


@dataclass(frozen=True)
class RemovedOfClass:
    """removed float (12,): the share of what each lead recorded that is removed, mean over the records of the class.

    found, beyond: None where the class has no leads of evidence; beyond: found less what chance finds, paired.
    """

    code: str
    records: int
    removed: tuple[float, ...]
    evidence: tuple[str, ...]
    found: Estimate | None
    beyond: Estimate | None


@dataclass(frozen=True)
class Removed:
    """classes, and all records with evidence together, whatever their class: found, chance, and the one less the other.

    examples: class -> row of a record that has no other class, where there is one, and what is removed of it, bool
    (12, T).
    """

    share: float
    records: int
    classes: list[RemovedOfClass]
    found: Estimate
    chance: float
    beyond: Estimate
    examples: dict[str, tuple[int, np.ndarray]]

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = plain(
            {
                "share": self.share,
                "records_with_evidence": self.records,
                "found": asdict(self.found),
                "chance": self.chance,
                "beyond_chance": asdict(self.beyond),
                "classes": [
                    {**asdict(each), "removed": dict(zip(STANDARD_LEADS, each.removed, strict=True))}
                    for each in self.classes
                ],
            }
        )
        return told

    def table(self) -> list[str]:
        head = f"{'class':8}{'records':>8}  " + "".join(f"{lead:>6}" for lead in STANDARD_LEADS) + "  evidence found"
        lines = [f"share of each lead that the masker removes, of {self.share:g} of the record", head]
        for each in self.classes:
            cells = "".join(f"{100 * share:5.0f}%" for share in each.removed)
            found = "" if each.found is None else f"{each.found.value:.2f} of {', '.join(each.evidence)}"
            lines.append(f"{each.code:8}{each.records:8}  {cells}  {found}")
        if not self.records:
            return [*lines, "primary evidence found: n/a, no record here has a class whose leads of evidence are known"]
        b = self.beyond
        lines.append(
            f"primary evidence found: {self.found.value:.3f}, by chance {self.chance:.3f}, beyond chance "
            f"{b.value:+z.3f} ({between(b.low, b.high)}), {self.records} records"
        )
        return lines


def what_is_removed(
    shard_set: ShardSet,
    task: EvaluationTask,
    ranking: Ranking,
    share: float,
    *,
    resamples: int,
    seed: int,
    progress: Progress | None = None,
) -> Removed:
    """The masker's choice for every record of the task. Raises DataError when a record is damaged."""
    leads, evidence = units_of("leads", shard_set.spec), evidence_of(task)
    gone, found, chance = [], [], []
    examples: dict[str, tuple[int, np.ndarray]] = {}
    done = 0
    for batch in iterate_rows(shard_set, task.rows, 32):
        for k in range(len(batch.rows)):
            has = task.truth[done]
            gladly = ranking(batch.signal[k], batch.lead_mask[k], int(batch.valid_samples[k]))
            there = recorded_samples(batch.lead_mask[k], int(batch.valid_samples[k]), gladly.shape[1])
            chosen = _samples(gladly, there, share)
            gone.append(chosen.sum(axis=1) / np.maximum(there.sum(axis=1), 1))
            own = evidence[has].any(axis=0) & bool(evidence[has].any(axis=1).all() if has.any() else False)
            own &= there.any(axis=1)
            count = int(own.sum())
            most = highest(mean_by_unit(gladly, leads, there), count)
            found.append((most & own).sum() / count if count else np.nan)
            chance.append(count / there.any(axis=1).sum() if count else np.nan)
            if has.sum() == 1:
                examples.setdefault(task.prompts.codes[int(np.argmax(has))], (int(task.rows[done]), chosen))
            done += 1
        if progress is not None:
            progress(done, len(task.rows))
    removed, hits, by_chance = np.array(gone), np.array(found), np.array(chance)

    def mean(values: np.ndarray, rows: np.ndarray) -> Estimate:
        return mean_over_records(values[rows], task.patients[rows], resamples=resamples, seed=seed)

    known = np.isfinite(hits)
    classes = _classes(task, evidence, removed, hits, by_chance, mean)
    beyond = mean(hits - by_chance, known)
    at_chance = float(by_chance[known].mean()) if known.any() else float("nan")
    return Removed(share, int(known.sum()), classes, mean(hits, known), at_chance, beyond, examples)


def _samples(gladly: np.ndarray, there: np.ndarray, share: float) -> np.ndarray:
    """bool (12, T): the share of a record's recorded samples that is removed most gladly; equal ones go together."""
    if not there.any():
        return np.zeros_like(there)
    return np.asarray(there & (gladly >= np.quantile(gladly[there], 1 - share)))


def _classes(
    task: EvaluationTask,
    evidence: np.ndarray,
    removed: np.ndarray,
    hits: np.ndarray,
    by_chance: np.ndarray,
    mean: Callable[[np.ndarray, np.ndarray], Estimate],
) -> list[RemovedOfClass]:
    out = []
    names: Sequence[str] = STANDARD_LEADS
    for c, code in enumerate(task.prompts.codes):
        rows = task.truth[:, c]
        if not rows.any():
            continue
        with_it = rows & np.isfinite(hits)
        known = bool(evidence[c].any() and with_it.any())
        out.append(
            RemovedOfClass(
                code,
                int(rows.sum()),
                tuple(removed[rows].mean(axis=0).tolist()),
                tuple(name for name, there in zip(names, evidence[c], strict=True) if there),
                mean(hits, with_it) if known else None,
                mean(hits - by_chance, with_it) if known else None,
            )
        )
    return out
