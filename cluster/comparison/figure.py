"""One figure of one system on one task, and whether another one may stand beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cardialign.pretrain.evaluation.scored import ScoredRecords

ZERO_SHOT, PROBE, FINE_TUNE = "zero-shot", "linear probe", "fine-tuning"
KINDS = (ZERO_SHOT, PROBE, "attention probe", "nearest neighbours", FINE_TUNE, "training from scratch")
PUBLISHED_TASKS = {
    "rhythm": "PTB-XL rhythm",
    "sub": "PTB-XL sub",
    "form": "PTB-XL form",
    "super": "PTB-XL super",
    "cpsc2018": "CPSC2018",
    "csn": "CSN",
}
"""The tasks of the published grid, in its order."""
GROUND = {
    "records": "other records",
    "shards": "another shard set",
    "protocol": "another protocol",
    "split": "another part of the protocol",
    "folds": "other folds",
    "labels": "another label set",
    "classes": "other classes",
    "truth": "other labels of the same records",
    "prompts": "other prompts",
    "scoring": "another way of scoring",
    "learnt_from": "learnt from other records",
    "chosen_by": "chosen by other records",
    "subset": "other shares of the training records",
}
"""What must be the same of two figures that are compared -> what is said where it is not."""
FOLLOWS = {"records": {"shards", "split", "folds"}, "learnt_from": {"shards", "folds"}}
"""Where the key is known of both and the same, these may differ: a set may be built twice."""
LONGEST_WORD = 40
NONE, FOUND = "none", "found"


@dataclass(frozen=True)
class Column:
    """What a figure is of: kind of evaluation, task, share of the labels (None: it has no shares)."""

    kind: str
    task: str
    share: float | None = None

    @property
    def title(self) -> str:
        return PUBLISHED_TASKS.get(self.task, self.task)

    def __str__(self) -> str:
        share = "" if self.share is None else f" at {100 * self.share:g} %"
        return f"{self.kind}, {self.title}{share}"

    @property
    def place(self) -> tuple[int, float, int, str]:
        """Where it stands in a table."""
        tasks = list(PUBLISHED_TASKS)
        task = tasks.index(self.task) if self.task in tasks else len(tasks)
        return KINDS.index(self.kind), self.share or 0.0, task, self.task


@dataclass(frozen=True)
class Figure:
    """value: macro AUROC in 0..1, with its sd over seeds (None: one seed) and its 95 % interval by patient.

    ground: what it was measured on, in the words of GROUND; encoder: digest of what was scored, "" for none of its own.
    seen: whether its records were trained on before ("none", "found", "unknown"), and seen_words. parts: its scores,
    one entry per fold kept out; none where `unpaired` says why.
    """

    column: Column
    value: float
    sd: float | None
    low: float | None
    high: float | None
    seeds: int
    records: int | None
    patients: int | None
    classes: int
    ground: Mapping[str, str]
    source: Path
    encoder: str = ""
    seen: str = "unknown"
    seen_words: str = ""
    parts: tuple[ScoredRecords, ...] = ()
    unpaired: str = ""
    remarks: tuple[str, ...] = ()


def unlike(mine: Figure, theirs: Figure) -> list[str]:
    """Why two figures of one column are not compared, in words; [] where they are."""
    a, b = mine.ground, theirs.ground
    both = [key for key in GROUND if key in a and key in b]
    settled = {other for key, others in FOLLOWS.items() if key in both and a[key] == b[key] for other in others}
    return [
        f"{GROUND[key]} ({_short(b[key])}, not {_short(a[key])})"
        for key in both
        if a[key] != b[key] and key not in settled
    ]


def _short(text: str) -> str:
    text = re.sub(r"\b([0-9a-f]{10})[0-9a-f]{22,}\b", r"\1", text)
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD - 1]}…"


def task_of(words: str) -> str:
    """The published task that a protocol's task or a prompt set is about; other words as they are."""
    bare = re.sub(r"-v\d+$", "", words.rpartition(":")[2])
    name = bare.removeprefix("ptb-xl-")
    name = {"csn-chapman": "csn"}.get(name, name)
    known = name in PUBLISHED_TASKS and (bare != name or name in ("cpsc2018", "csn"))
    return name if known else words
