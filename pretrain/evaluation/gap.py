"""Why two protocols give one encoder two figures: their settings switched one at a time, each worth measured.

Every evaluation draws the same weights for the same patients, so that differences are paired, also where a switch
changes records or classes. Legend: n records, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress
from cardialign.pretrain.evaluation.intervals import difference_interval, unlike_difference_interval
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, probe
from cardialign.pretrain.evaluation.probing.systems import ReadOptions, systems
from cardialign.pretrain.evaluation.probing.tasks import PARTS, ProbeTask, joint_labels
from cardialign.pretrain.evaluation.prompts import PromptSet
from cardialign.pretrain.evaluation.protocols import ProtocolTask, load_task, open_task, tasks_of
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import ClassTable, Estimate, score_classes, usable_classes
from cardialign.pretrain.evaluation.task import EvaluationTask, decided_records
from cardialign.pretrain.evaluation.zero_shot import class_scores
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)

ZERO_SHOT, LINEAR_PROBE = "zero-shot", "linear-probe"
SWITCHES = ("records", "labels", "prompts", "length", "normalisation", "pieces")
"""records: the split. labels: where they come from, which classes, what an unlabelled record is. prompts: the words of
a class. length: how much of a record is shown. normalisation: what is done to the signal. pieces: crop and average."""


@dataclass(frozen=True)
class Side:
    """One protocol's task in a shard set. pools: part -> rows of it, labelled or not. known: of published label files,
    row -> its truth; None where the shard set's own labels count. scored: the part that figures are of."""

    task: ProtocolTask
    words: PromptSet
    pools: dict[str, np.ndarray]
    known: dict[int, np.ndarray] | None
    scored: str = "test"

    def truth(self, shard_set: ShardSet, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool (n,), whether a row counts, and truth bool (n, C) in the order of `words`."""
        codes = self.words.codes
        if self.known is not None:
            none = np.zeros(len(codes), dtype=bool)
            kept = np.array([int(row) in self.known for row in rows], dtype=bool)
            return kept, np.stack([self.known.get(int(row), none) for row in rows])
        there, matrix, labelled = shard_set.labels(rows, self.words.label_set)
        empty = np.zeros(len(rows), dtype=bool)
        columns = [matrix[:, there.index(code)] if code in there else empty for code in codes]
        kept = labelled if self.task.values.get("unlabelled", "left-out") == "left-out" else np.ones_like(labelled)
        return kept, np.stack(columns, axis=1) & labelled[:, None]

    @property
    def own(self) -> bool:
        """Whether the labels are those of the shards, not of published files."""
        return self.known is None

    def scored_rows(self, shard_set: ShardSet) -> np.ndarray:
        """Rows of the scored part that count, as `protocols.open_task` gives them."""
        rows = self.pools[self.scored]
        found: np.ndarray = rows[self.truth(shard_set, rows)[0]]
        return found

    def said(self, switch: str) -> str:
        """The setting in words, to be read and to be compared."""
        values = self.task.values
        crop, split = self.task.crop, values.get("split")
        files = values.get("labels")
        unlabelled = values.get("unlabelled", "left-out")
        own = f"label set {self.words.label_set} of the shards, unlabelled {unlabelled}"
        by_hash = "" if split is None or split["by"] == "folds" else f" {split['salt']} {split['fractions']}"
        words: dict[str, str] = {
            "records": "published label files" if split is None else f"split by {split['by']}{by_hash}",
            "labels": own if files is None else f"published label files, {len(files['classes'])} classes",
            "prompts": self.words.name,
            "length": "whole" if values.get("first_seconds") is None else f"first {values['first_seconds']} s",
            "normalisation": self.task.normalisation if self.task.normalisation != "none" else "the encoder's own",
            "pieces": "none" if crop is None else f"{crop.seconds:g} s, {crop.average} averaged",
        }
        return words[switch]


@dataclass(frozen=True)
class Figure:
    """One evaluation: macro with its interval, of so many records and classes. codes: of these; wordless: of classes
    that are labelled, and left out because the prompts have no words for them."""

    macro: float
    low: float
    high: float
    records: int
    classes: int
    codes: tuple[str, ...]
    wordless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Switch:
    """A setting, what it is in either protocol, the figure with it switched alone, and what that is worth, paired."""

    name: str
    was: str
    becomes: str
    figure: Figure
    worth: Estimate


@dataclass(frozen=True)
class Gap:
    """The figure of one protocol, of each switch alone, and of all together; the rest is what switches do jointly."""

    task: str
    mode: str
    start: Figure
    switches: list[Switch]
    together: Switch

    @property
    def rest(self) -> float:
        return self.together.worth.value - sum(each.worth.value for each in self.switches)

    def to_dict(self) -> dict[str, Any]:
        return plain({**asdict(self), "rest": self.rest})

    def table(self) -> str:
        head = ["switch", "from", "to", "records", "classes", "macro", "worth", "95 % interval"]
        first = ["none", "", "", str(self.start.records), str(self.start.classes), f"{self.start.macro:.3f}", "", ""]
        lines = [head, first, *(_cells(each) for each in (*self.switches, self.together))]
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        title = f"{self.task}, {self.mode}: macro AUROC {self.start.macro:.3f} ({_interval(self.start)})"
        notes = [
            f"{each.name}: no words for {', '.join(each.figure.wordless)}"
            for each in (*self.switches, self.together)
            if each.figure.wordless
        ]
        return "\n".join([title, *rows, *notes, f"joint effect of the switches, beyond their sum: {self.rest:+z.3f}"])


def _cells(each: Switch) -> list[str]:
    figure, worth = each.figure, each.worth
    counts = [str(figure.records), str(figure.classes), f"{figure.macro:.3f}", f"{worth.value:+z.3f}"]
    interval = f"{worth.low:+z.3f} to {worth.high:+z.3f}" if np.isfinite(worth.low) else "n/a"
    return [each.name, each.was, each.becomes, *counts, interval]


def _interval(figure: Figure) -> str:
    return f"{figure.low:.3f}-{figure.high:.3f}" if np.isfinite(figure.low) else "n/a"


@dataclass(frozen=True)
class GapOptions:
    """mode: zero-shot or linear-probe; bootstrap resamples from `seed`."""

    mode: str = ZERO_SHOT
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64


def open_side(spec: str, shard_set: ShardSet, mode: str, label_files: Path | None = None, scored: str = "test") -> Side:
    """`PROTOCOL:TASK` in this shard set, with the parts that the mode needs.

    Raises UsageError for a probe that is scored on another part than test, and as `protocols.open_task`.
    """
    task = load_task(spec)
    if mode == LINEAR_PROBE and scored != "test":
        raise UsageError(
            f"--split {scored} with --mode {mode}: a probe is chosen on the validation records",
            "leave --split out, or choose --mode zero-shot",
        )
    wanted = PARTS if mode == LINEAR_PROBE else (scored,)
    opened = {part: open_task(spec, shard_set, split=part, label_files=label_files) for part in wanted}
    if "labels" in task.values:
        known = {
            int(row): row_truth
            for each in opened.values()
            for row, row_truth in zip(each.rows, each.truth, strict=True)
        }
        pools = {part: each.rows for part, each in opened.items()}
        return Side(task, opened[scored].prompts, pools, known, scored)
    chosen = task.values["split"]
    pools = {}
    for part in wanted:
        by_folds = chosen["by"] == "folds"
        rule = None if by_folds else SplitRule(part, chosen["salt"], tuple(chosen["fractions"]))
        pools[part] = shard_set.select(folds=chosen[part] if by_folds else None, split=rule).rows
    return Side(task, task.words, pools, None, scored)


def shared_tasks(start: str, end: str, shard_set: ShardSet) -> list[str]:
    """Tasks that both protocols have for the data set the shards were built from. Raises UsageError when none is."""
    source = str(shard_set.manifest["source"].get("name"))
    both = [name for name in tasks_of(start) if name in tasks_of(end)]
    found = [name for name in both if source in load_task(f"{start}:{name}").values["sources"]]
    if not found:
        raise UsageError(
            f"{start} and {end} have no task in common that is about {source}, of which {shard_set.path} was built",
            f"tasks of both: {', '.join(both) or 'none'}",
        )
    return found


def explain_gap(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    start: Side,
    end: Side,
    options: GapOptions | None = None,
    progress: Progress | None = None,
) -> Gap:
    """What each setting in which two protocols differ is worth in macro AUROC, and all of them together.

    Raises UserError: the encoder does not fit or lacks what the mode needs; nothing can be scored with a switch.
    """
    options = options or GapOptions()
    differing = [name for name in SWITCHES if start.said(name) != end.said(name)]
    if options.mode == LINEAR_PROBE:
        differing = [name for name in differing if name != "prompts"]
    if not differing:
        raise UsageError(
            f"{start.task.spec} and {end.task.spec} agree in everything that can be switched for {options.mode}",
            "compare protocols that differ, or choose another --mode",
        )
    choices = [(), *((name,) for name in differing), tuple(differing)]
    settings = [{name: end if name in switched else start for name in SWITCHES} for switched in choices]
    everybody = np.unique(np.concatenate([shard_set.patients[side.pools[side.scored]] for side in (start, end)]))
    tables, figures = [], []
    for done, chosen in enumerate(settings):
        table, figure = _evaluated(encoder, shard_set, chosen, options, everybody)
        log.info("gap task=%s switched=%s macro=%.4f", start.task.spec, choices[done], figure.macro)
        tables.append(table)
        figures.append(figure)
        if progress is not None:
            progress(done + 1, len(settings))
    made = []
    for switched, table, figure in zip(choices[1:], tables[1:], figures[1:], strict=True):
        alone = len(switched) == 1
        was, becomes = (side.said(switched[0]) if alone else side.task.protocol for side in (start, end))
        worth = _worth(table, tables[0], figure.codes == figures[0].codes)
        made.append(Switch(switched[0] if alone else "all together", was, becomes, figure, worth))
    # with one switch alone, "all together" is that switch
    together = replace(made[-1], name="all together", was=start.task.protocol, becomes=end.task.protocol)
    return Gap(f"{start.task.spec} to {end.task.spec}", options.mode, figures[0], made[: len(differing)], together)


def _worth(table: ClassTable, first: ClassTable, same_classes: bool) -> Estimate:
    limits = difference_interval if same_classes else unlike_difference_interval
    value = float(table.sample.point.mean() - first.sample.point.mean())
    return Estimate(value, *limits(table.sample, first.sample))


def _evaluated(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    chosen: dict[str, Side],
    options: GapOptions,
    everybody: np.ndarray,
) -> tuple[ClassTable, Figure]:
    """The scored part under one choice of settings, scored over resamples of everybody's patients."""
    parts = {part: _part(shard_set, chosen, part, options.mode) for part in chosen["records"].pools}
    test = parts[chosen["records"].scored]
    if options.mode == ZERO_SHOT:
        scores = class_scores([encoder], shard_set, test, EmbedOptions(batch_size=options.batch_size))[0]
    else:
        scores = _probed(encoder, shard_set, parts, options)
    usable, _ = usable_classes(test.truth, test.decided)
    if not usable.size:
        raise UserError(
            f"no class has both positives and negatives among {len(test.rows)} records "
            f"({', '.join(f'{name} of {side.task.protocol}' for name, side in chosen.items())})",
            "build shards from more of the data set",
        )
    names = [(test.prompts.classes[c].code, test.prompts.classes[c].name) for c in usable]
    (table,) = score_classes(
        [scores[:, usable]], test.truth[:, usable], test.patients, names,
        resamples=options.bootstrap, seed=options.seed, among=everybody,
        decided=None if test.decided is None else test.decided[:, usable],
    )  # fmt: skip
    macro = table.macro
    codes = tuple(code for code, _ in names)
    kept = set(test.prompts.codes)
    wordless = tuple(code for code in chosen["labels"].words.codes if code not in kept)
    return table, Figure(macro.value, macro.low, macro.high, len(test.rows), len(usable), codes, wordless)


def _part(shard_set: ShardSet, chosen: dict[str, Side], part: str, mode: str) -> EvaluationTask:
    """Records of one side's split with the labels, words and signal of the sides that are chosen for them."""
    labels, prompts = chosen["labels"], chosen["prompts"]
    rows = chosen["records"].pools[part]
    kept, truth = labels.truth(shard_set, rows)
    words = labels.words
    if mode == ZERO_SHOT:
        theirs = {each.code: each for each in prompts.words.classes}
        shared = [k for k, code in enumerate(words.codes) if code in theirs]
        if shared:  # where none is shared, classes have no other words than those of the protocol that names them
            truth = truth[:, shared]
            words = replace(prompts.words, classes=tuple(theirs[words.codes[k]] for k in shared))
    if not kept.any():
        raise UserError(
            f"none of the {len(rows)} {part} records of {chosen['records'].task.spec} has labels of {labels.task.spec}",
            "build shards from more of the data set, or give the label files of all parts",
        )
    rows = rows[kept]
    decided = decided_records(shard_set, rows, labels.words.label_set, words.codes) if labels.own else None
    return EvaluationTask(
        words, rows, truth[kept], shard_set.patients[rows], {}, decided=decided,
        first_seconds=chosen["length"].task.values.get("first_seconds"), crop=chosen["pieces"].task.crop,
        normalisation=chosen["normalisation"].task.normalisation,
    )  # fmt: skip


def _probed(
    encoder: UsableEncoder, shard_set: ShardSet, parts: dict[str, EvaluationTask], options: GapOptions
) -> np.ndarray:
    """Log odds of the test records by a probe of all training records."""
    rows = np.unique(np.concatenate([each.rows for each in parts.values()]))
    places = {part: np.searchsorted(rows, each.rows) for part, each in parts.items()}
    truth, decided = joint_labels(rows, list(parts.values()))
    test = parts["test"]
    task = ProbeTask(
        "gap", [], rows, truth, shard_set.patients[rows], Parts(*(places[part] for part in PARTS)),
        test.first_seconds, {}, test.crop, decided,
    )  # fmt: skip
    how = EmbedOptions(batch_size=options.batch_size, normalisation=test.normalisation)
    (system,) = systems(encoder, shard_set, task, (), options.seed, ReadOptions(embed=how))
    try:
        return probe(system.features, truth, task.parts, decided=decided).scores
    except ValueError as error:
        raise UserError(f"linear probe: {error}", "build shards from more of the data set") from None


def table_of(gaps: Sequence[Gap]) -> str:
    return "\n\n".join(each.table() for each in gaps)
