"""From a shard set, a language model and a coarse encoder to completed reports beside the set.

Each distinct report is asked for once; each feature of an answer that the leak guard lets through is scored against the
own ECG of every record with that report, and kept where p = sigmoid(t cos + b) > threshold. So records with equal
reports come to differ, and what the model made up is dropped where the ECG does not show it.
Source: FG-CLEP (arXiv 2505.11939v1), threshold 0.95. Ours: the guard, the budget, and strangers: each feature is also
scored beside ECGs for which it was not proposed. They say what share passes a threshold by chance, and can set it, one
for each feature (`strangers`): p of a short training is small everywhere, its order is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.asking import NO_LIMIT, Asked, Budget, ask_all
from cardialign.cluster.completion.endpoint import Endpoint
from cardialign.cluster.completion.guard import LeakGuard
from cardialign.cluster.completion.prompt import PROMPT_VERSION
from cardialign.cluster.completion.proposals import (
    Pairs,
    Proposals,
    own_thresholds,
    pairs_of,
    propose,
    strangers,
)
from cardialign.cluster.completion.scoring import pair_probabilities, scale_and_bias
from cardialign.cluster.completion.tables import acceptance, feature_rows, sheet_rows, write_table
from cardialign.data_shards.build.overlay import check_new, write_overlay
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)

_RECORDS = 1 << 14

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Completion:
    """How reports are completed. strangers: not by one threshold, but by one for each feature, which at most this share
    of strangers exceed. guard: prompt sets whose class names no feature may hold. answered_only: nothing is
    asked, what is answered already completes. folds: only the records of these. sheet: lines for a human to judge."""

    threshold: float = 0.95
    strangers: float | None = None
    guard: tuple[str, ...] = ()
    concurrency: int = 8
    budget: Budget = NO_LIMIT
    answered_only: bool = False
    folds: tuple[int, ...] | None = None
    sheet: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Reports:
    """Those of the records that are completed. rows int64 (n,), report int64 (n,); numbers: the distinct reports among
    them, with their statements and texts."""

    rows: np.ndarray
    report: np.ndarray
    numbers: list[int]
    statements: list[tuple[str, ...]]
    texts: list[str]


def complete_reports(
    shard_set: ShardSet,
    out: Path,
    endpoint: Endpoint,
    encoder: UsableEncoder,
    answers: Path,
    how: Completion,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Any]:
    """Make the new folder `out` of completed reports, OUT.features.csv and OUT.sheet.csv; returns the figures.

    answers: the folder where answers are kept. progress: a word for a stretch of work -> its callback. Raises UserError
    or DataError: before anything is asked where `out` exists, the encoder gives no probabilities or does not fit the
    set, or a prompt set is unknown; later what `ask_all` raises. Answers so far are kept.
    """
    tell = progress or (lambda word: lambda done, total: None)
    check_new(out)
    scale_and_bias(encoder)
    encoder.reader(shard_set.spec)
    guard = LeakGuard(each.name for name in how.guard for each in load_prompts(name).classes)
    reports = _reports(shard_set, how)
    found, asked, tokens = _answered(reports, endpoint, answers, how, guard, tell("reports asked"))
    pairs = pairs_of(found, reports.rows, reports.report)
    others = strangers(reports.rows, reports.report, found, how.seed)
    both = np.concatenate([pairs.rows, others.rows]), np.concatenate([pairs.feature, others.feature])
    scored = pair_probabilities(encoder, shard_set, found.features, both[0], both[1], tell("records scored"))
    probability, strange = np.split(scored, [len(pairs.rows)])
    least = np.full(len(found.features), how.threshold)
    if how.strangers is not None:
        least = own_thresholds(strange, others.feature, len(found.features), how.strangers)
    keep = probability > least[pairs.feature]
    step = {**_step(how, endpoint.model, encoder.digest), "kept": int(keep.sum())}
    overlay = write_overlay(shard_set, out, _completed(shard_set, pairs, keep, found.features), step)
    _tell_nothing_kept(out, pairs, keep)
    rows = feature_rows(found, pairs, probability, keep)
    sheet = sheet_rows(shard_set, found, pairs, probability, keep, how.sheet, how.seed)
    tables = {"features": rows, "sheet": sheet}
    figures = _figures(reports, found, asked, pairs, keep)
    cost = how.budget.price(*tokens) if any(how.budget.prices) else None
    return {
        "path": str(out),
        "digest": overlay.digest,
        "model": endpoint.model,
        "threshold": how.threshold if how.strangers is None else None,
        "strangers": how.strangers,
        **figures,
        "tokens": {"prompts": tokens[0], "answers": tokens[1]},
        "cost": cost,
        "distinct_reports": {"before": shard_set.report_count, "after": overlay.reports},
        "acceptance": acceptance(probability, strange, how.threshold),
        "most_proposed": rows[:20],
        "tables": {name: write_table(out.with_name(f"{out.name}.{name}.csv"), told) for name, told in tables.items()},
    }


def _answered(
    reports: Reports, endpoint: Endpoint, answers: Path, how: Completion, guard: LeakGuard, progress: Progress
) -> tuple[Proposals, Asked, tuple[int, int]]:
    """What the answers propose, what was asked for that now, and the tokens of all of them.

    Raises what `ask_all` does, and UserError where no answer is a list: reports to which nothing can be added are not
    written as if they were completed.
    """
    with AnswerStore.opened(answers, endpoint.model) as store:
        asked = Asked(0, 0)
        if not how.answered_only:
            asked = ask_all(reports.texts, endpoint, store, how.budget, how.concurrency, progress)
        found = propose(reports.numbers, reports.statements, reports.texts, store, guard)
        if not found.lists:
            said = f"{found.unanswered} have no answer, {found.prose} one that is no JSON list of strings"
            raise UserError(
                f"no report can be completed by {endpoint.model}: {said} ({store.path})",
                "name the --model and --answers that were asked before, or leave --answered-only out; a model whose "
                "answers are no lists must be another one",
            )
        return found, asked, store.spent


def _tell_nothing_kept(out: Path, pairs: Pairs, keep: np.ndarray) -> None:
    if pairs.rows.size and not keep.any():
        log.warning(
            "reports=%s remark=no feature passed its threshold: they say what they said before; choose a lower "
            "--threshold, or --strangers 0.1 for one of each feature (nothing is asked again)",
            out,
        )


def _step(how: Completion, model: str, encoder: str) -> dict[str, Any]:
    """What the reports say of how they were made."""
    return {
        "kind": "completion",
        "prompt_version": PROMPT_VERSION,
        "model": model,
        "encoder": encoder,
        "threshold": how.threshold if how.strangers is None else None,
        "strangers": how.strangers,
        "guard": list(how.guard),
        "folds": None if how.folds is None else list(how.folds),
    }


def _reports(shard_set: ShardSet, how: Completion) -> Reports:
    rows = shard_set.select(folds=how.folds, require_report=True).rows
    report = np.asarray(shard_set.report)[rows].astype(np.int64)
    numbers = np.unique(report)
    statements = shard_set.report_columns(["statements"]).column("statements").take(numbers).to_pylist()
    told = [tuple(each) for each in statements]
    return Reports(rows, report, numbers.tolist(), told, [join_statements(each) for each in told])


def _completed(
    shard_set: ShardSet, pairs: Pairs, keep: np.ndarray, features: Sequence[str]
) -> Iterator[list[tuple[str, ...]]]:
    """Statements of every record of the set, what was kept of it behind its own."""
    table = [tuple(each) for each in shard_set.report_columns(["statements"]).column("statements").to_pylist()]
    report = np.asarray(shard_set.report)
    rows, numbers = pairs.rows[keep], pairs.feature[keep]
    for start in range(0, len(shard_set), _RECORDS):
        stop = min(start + _RECORDS, len(shard_set))
        edges = np.searchsorted(rows, np.arange(start, stop + 1))
        yield [
            (*table[own], *(features[k] for k in numbers[first:last].tolist())) if own >= 0 else ()
            for own, first, last in zip(
                report[start:stop].tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True
            )
        ]


def _figures(reports: Reports, found: Proposals, asked: Asked, pairs: Pairs, keep: np.ndarray) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for (_, why), count in found.dropped.items():
        reasons[why] = reasons.get(why, 0) + count
    return {
        "records": len(reports.rows),
        "completed_records": int(np.unique(pairs.rows[keep]).size),
        "reports": {
            "distinct": len(reports.numbers),
            "asked_now": asked.asked,
            "answered": found.lists,
            "answered_in_prose": found.prose,
            "refused": asked.refused,
            "unanswered": found.unanswered,
        },
        "proposed": {"features": len(found.features), "dropped_by_guard": dict(sorted(reasons.items()))},
        "pairs": {"scored": len(pairs.rows), "kept": int(keep.sum())},
    }
