"""The contamination ledger: of every figure, which of the scored patients and recordings were trained on before.

A line per figure and set. What cannot be compared is "unknown" with the reason, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.overlap import FOUND, NONE, UNKNOWN, Overlap, find_overlap, refuse_overlap
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.export.loaded import LoadedEncoder
from cardialign.pretrain.export.trained_on import patient_digests, recording_digests

NOTHING_TRAINED = "it was never trained"
PRETRAINING, LABELLED = "pretraining", "the labelled training records"


@dataclass(frozen=True)
class LedgerLine:
    """figure: whose; scored: on which records; against: what was trained on; status as in `overlap`.

    patients of of_patients scored patients, and recordings of of_recordings scored ones, are in both. reason: why the
    line is unknown, or why there may be more.
    """

    figure: str
    scored: str
    against: str
    status: str
    patients: int
    of_patients: int
    recordings: int
    of_recordings: int
    reason: str = ""

    def __str__(self) -> str:
        head = f"ledger {self.figure} x {self.scored}, {self.against}"
        if self.status == UNKNOWN:
            return f"{head}: unknown ({self.reason})"
        least = " at least" if self.reason and self.status == FOUND else ""
        return (
            f"{head}: shared patients{least} {self.patients} of {self.of_patients}, "
            f"shared recordings{least} {self.recordings} of {self.of_recordings}"
            + (f" ({self.reason})" if self.reason else "")
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "line": str(self)}


def of_pretraining(figure: str, scored: str, overlap: Overlap | Mapping[str, Any]) -> LedgerLine:
    """The line of an encoder, from what `find_overlap` found, or from what a result says of it."""
    found = asdict(overlap) if isinstance(overlap, Overlap) else dict(overlap)
    return LedgerLine(
        figure,
        scored,
        PRETRAINING,
        found["status"],
        found["patients"],
        found.get("of_patients", 0),
        found["recordings"],
        found.get("of_records", 0),
        found.get("doubt", "") or (found["note"] if found["status"] == UNKNOWN else ""),
    )


def note_ledger(
    task: ProbeTask, shard_set: ShardSet, figures: Mapping[str, LoadedEncoder | None], *, allow_trained: bool
) -> None:
    """Write into `task.about` what the encoder of each figure (None: nothing was trained) has seen of the test records.

    Raises UserError where one was trained on them, unless `allow_trained`.
    """
    rows = task.rows[task.parts.test]
    scored = f"{task.name} test"
    lines = []
    for figure, encoder in figures.items():
        if encoder is None:
            lines.append(_never_trained(figure, scored, shard_set, rows))
            continue
        overlap = find_overlap(encoder, shard_set, rows)
        if not allow_trained:
            refuse_overlap(overlap, encoder, shard_set)
        task.about["trained_on"] = overlap.to_dict()
        lines.append(of_pretraining(figure, scored, overlap))
    lines.append(of_labelled(scored, shard_set, task.rows[task.parts.train], rows))
    task.about["ledger"] = [line.to_dict() for line in lines]


def _never_trained(figure: str, scored: str, shard_set: ShardSet, rows: np.ndarray) -> LedgerLine:
    """The line of a floor whose features nobody trained."""
    patients = len(np.unique(shard_set.patients[rows]))
    return LedgerLine(figure, scored, PRETRAINING, NONE, 0, patients, 0, len(rows), NOTHING_TRAINED)


def of_labelled(scored: str, shard_set: ShardSet, train: np.ndarray, test: np.ndarray) -> LedgerLine:
    """The line that all figures of a probe share: scored rows against the rows that a probe or fine-tuning learns from.

    A recording that is there twice counts, whatever its patient id says. Only the index is read.
    """
    patients, recordings = patient_digests(shard_set, test), recording_digests(shard_set, test)
    known, heard = patient_digests(shard_set, train), recording_digests(shard_set, train)
    same_patient = np.isin(patients, known[known != 0])
    same_recording = np.isin(recordings, heard[heard != 0])
    nameless = int((patients == 0).sum() + (known == 0).sum())
    reason = f"{nameless} records of the two have no patient id" if nameless else ""
    everybody = shard_set.patients[test]
    shared = len(np.unique(everybody[same_patient | same_recording]))
    status = FOUND if shared else UNKNOWN if nameless else NONE
    return LedgerLine(
        "every system",
        scored,
        LABELLED,
        status,
        shared,
        len(np.unique(everybody)),
        int(same_recording.sum()),
        len(test),
        reason,
    )


def told(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a result, for people; what is alike but for the figure stands together."""
    together: dict[tuple[Any, ...], list[str]] = {}
    for line in lines:
        key = tuple((name, value) for name, value in line.items() if name not in ("figure", "line"))
        together.setdefault(key, []).append(line["figure"])
    return [str(LedgerLine(figure=", ".join(figures), **dict(key))) for key, figures in together.items()]
