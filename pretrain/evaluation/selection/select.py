"""Which checkpoint, which encoder? Judged on validation records alone, by a criterion that the result names.

`retrieval` and `rankme` ask for no labels. `probe` uses labels of the downstream task: what is chosen by it is not
zero-shot there any more. No test record is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbeddedSet, EmbedOptions, Progress, embed_set
from cardialign.pretrain.evaluation.ledger import of_pretraining, told
from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
from cardialign.pretrain.evaluation.probing.linear_probe import probe
from cardialign.pretrain.evaluation.probing.one_thread import one_thread
from cardialign.pretrain.evaluation.probing.systems import ReadOptions, systems
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.selection.effective_rank import effective_rank
from cardialign.pretrain.evaluation.selection.retrieval import RANKS, Retrieval, retrieve
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)

CRITERIA = ("retrieval", "rankme", "probe")
LABEL_FREE = ("retrieval", "rankme")


@dataclass(frozen=True)
class Validation:
    """The validation rows of a shard set, in words (`described`), and for `probe` a task whose test part is empty."""

    shard_set: ShardSet
    rows: np.ndarray
    described: str
    task: ProbeTask | None = None


@dataclass(frozen=True)
class Figures:
    """values: criterion -> figure, higher is better; None where it cannot be had, for one of the `reasons`."""

    values: dict[str, float | None]
    reasons: dict[str, str]
    retrieval: Retrieval | None


@dataclass(frozen=True)
class Judged:
    """One candidate. figures: criterion -> value, higher is better; None where it cannot be had (`reasons`)."""

    name: str
    digest: str
    figures: dict[str, float | None]
    retrieval: Retrieval | None
    reasons: dict[str, str]
    ledger: list[dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """Candidates, best first, and what they were judged by and on."""

    criterion: str
    on: dict[str, Any]
    ranking: list[Judged]

    @property
    def label_free(self) -> bool:
        return self.criterion in LABEL_FREE

    def to_dict(self) -> dict[str, Any]:
        return plain(
            {
                "criterion": self.criterion,
                "label_free": self.label_free,
                "validation": self.on,
                "test_opened": 0,
                "best": self.ranking[0].name,
                "ranking": [{**asdict(each), "value": each.figures[self.criterion]} for each in self.ranking],
            }
        )

    def table(self) -> str:
        measured = [name for name in CRITERIA if any(name in each.figures for each in self.ranking)]
        lines = [["", "candidate", *measured, *(f"ECG finds report, R@{k}" for k in RANKS)]]
        for place, each in enumerate(self.ranking, 1):
            found = each.retrieval.ecg_to_report if each.retrieval else {}
            cells = [_shown(each.figures.get(name)) for name in measured] + [_shown(found.get(k)) for k in RANKS]
            lines.append([f"{place}.", each.name, *cells])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        kind = "no labels" if self.label_free else "labels of the task: what is chosen is not zero-shot on it"
        title = f"chosen by {self.criterion} ({kind}) on {self.on['words']}; no test record was read"
        reasons = dict.fromkeys(f"no {name}: {why}" for each in self.ranking for name, why in each.reasons.items())
        return "\n".join([title, *rows, *reasons, *told([line for each in self.ranking for line in each.ledger])])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def choose_encoder(
    candidates: Iterable[tuple[str, UsableEncoder]],
    on: Validation,
    criterion: str = "retrieval",
    *,
    allow_trained: bool = False,
    progress: Progress | None = None,
) -> Choice:
    """Every candidate (name, encoder) by every criterion that can be had, ranked by one; equals stay in order.

    Raises UsageError for an unknown criterion or one that no candidate can be judged by, UserError when a candidate was
    trained on the validation records (unless `allow_trained`) or does not fit them.
    """
    if criterion not in CRITERIA or (criterion == "probe" and on.task is None):
        why = "needs labels" if criterion == "probe" else "is unknown"
        raise UsageError(f"criterion {criterion!r} {why}", f"choose one of {', '.join(CRITERIA)}")
    judged = []
    for name, encoder in candidates:
        overlap = find_overlap(encoder, on.shard_set, on.rows)
        if not allow_trained:
            refuse_overlap(overlap, encoder, on.shard_set)
        line = of_pretraining(name, f"validation, {on.described}", overlap.to_dict()).to_dict()
        judged.append(_judge(name, encoder, on, [line], progress))
        log.info("select candidate=%s %s", name, judged[-1].figures)
    lacking = [each for each in judged if each.figures.get(criterion) is None]
    if lacking:
        raise UserError(
            f"{lacking[0].name} cannot be judged by {criterion}: {lacking[0].reasons[criterion]}",
            f"choose another --criterion of {', '.join(CRITERIA)}",
        )
    ranking = sorted(judged, key=lambda each: -(each.figures[criterion] or 0.0))
    patients = len(np.unique(on.shard_set.patients[on.rows]))
    facts = {"words": on.described, "shards": on.shard_set.fingerprint, "records": len(on.rows), "patients": patients}
    return Choice(criterion, facts, ranking)


def _judge(
    name: str, encoder: UsableEncoder, on: Validation, ledger: list[dict[str, Any]], progress: Progress | None
) -> Judged:
    """What a criterion cannot be had for is said in `reasons`."""
    found = figures_of(encoder, on, progress=progress)
    return Judged(name, encoder.digest, found.values, found.retrieval, found.reasons, ledger)


def figures_of(
    encoder: UsableEncoder, on: Validation, wanted: Sequence[str] = CRITERIA, progress: Progress | None = None
) -> Figures:
    """The criteria of `CRITERIA` that are wanted; `probe` only where there is a task to learn."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    retrieval = None

    def measured(criterion: str, measure: Callable[[], float]) -> None:
        try:
            values[criterion] = measure()
        except ValueError as error:
            values[criterion], reasons[criterion] = None, str(error)

    if set(wanted) & set(LABEL_FREE):
        embedded = embed_set([encoder], on.shard_set, on.rows, EmbedOptions(), progress)[0]
        try:
            retrieval = _retrieval(encoder, on, embedded)
            values["retrieval"] = retrieval.mean
        except UserError as error:
            values["retrieval"], reasons["retrieval"] = None, error.problem
        measured("rankme", lambda: effective_rank(embedded.embedding))
    task = on.task
    if "probe" in wanted and task is not None:
        measured("probe", lambda: _probed(encoder, on.shard_set, task, progress))
    return Figures(values, reasons, retrieval)


def _retrieval(encoder: UsableEncoder, on: Validation, embedded: EmbeddedSet) -> Retrieval:
    reports = on.shard_set.report[on.rows]
    paired = np.flatnonzero(reports >= 0)
    known, report_of = np.unique(reports[paired], return_inverse=True)
    if len(known) < 2:
        raise DataError(f"{len(known)} distinct reports among {len(on.rows)} validation records", "take more records")
    statements = on.shard_set.report_columns(["statements"]).column("statements").take(known).to_pylist()
    texts = [join_statements(each, encoder.report_style) for each in statements]
    return retrieve(np.asarray(embedded.embedding)[paired], encoder.embed_text(texts), report_of)


def _probed(encoder: UsableEncoder, shard_set: ShardSet, task: ProbeTask, progress: Progress | None) -> float:
    """Macro AUROC of the validation records, by a linear probe of the training records."""
    (found,) = systems(encoder, shard_set, task, (), options=ReadOptions(progress))
    with one_thread():
        return probe(found.features, task.truth, task.parts, decided=task.decided).validation
