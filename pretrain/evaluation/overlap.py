"""Was the encoder trained on what it is scored on? By patient and by recording, from what its export says.

Patients are compared by their hashed ids, where ids of both sets can mean the same person; recordings by the digest of
their coded signal, which finds them in a set that was built again or hashed with another salt. It does not find one
that was scaled, filtered or cut anew on its way through somebody's files: where patients cannot be compared either,
what is left is unknown, never "no overlap".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.checks.leakage import OWN_IDS
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.evaluation.ledger import (
    FOUND,
    LABELLED,
    NONE,
    NOTHING_TRAINED,
    PRETRAINING,
    UNKNOWN,
    LedgerLine,
    of_pretraining,
)
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.export.trained_on import (
    TrainedOn,
    TrainedSet,
    is_salted,
    patient_digests,
    recording_digests,
    source_name,
)
from cardialign.pretrain.export.usable import UsableEncoder


@dataclass(frozen=True)
class Overlap:
    """status: none, found or unknown; records: of those to score, how many are of a patient or are a recording that
    the encoder was trained on; patients: how many of them; recordings: the very same ones; note: in words.

    of_records, of_patients: how many are to be scored in all. doubt: why there may be more than was found. twice:
    recordings to score that stand under several patients.
    """

    status: str
    records: int
    patients: int
    recordings: int
    note: str
    of_records: int = 0
    of_patients: int = 0
    doubt: str = ""
    twice: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_overlap(encoder: UsableEncoder, shard_set: ShardSet, rows: np.ndarray) -> Overlap:
    """What the encoder has seen of these rows. Only the index is read."""
    return overlap_of(encoder.seen(), shard_set, rows)


def overlap_of(known: TrainedOn, shard_set: ShardSet, rows: np.ndarray) -> Overlap:
    """The same of whatever was trained on `known`."""
    patients, recordings = patient_digests(shard_set, rows), recording_digests(shard_set, rows)
    same_patient, same_recording = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    doubts = list(known.unknown)
    for each in known.sets:
        if each.facts["fingerprint"] == shard_set.fingerprint:
            each = _filled(each, shard_set)
        if each.patients is None or each.recordings is None:
            continue
        same_recording |= np.isin(recordings, each.recordings) & (recordings != 0)
        comparable, doubt = _patients_comparable(each, shard_set)
        doubts += [doubt] if doubt else []
        if comparable:
            same_patient |= np.isin(patients, each.patients) & (patients != 0)
    nameless = int((patients == 0).sum())
    if known.sets and nameless:
        doubts.append(f"{nameless} of {len(rows)} records have no patient id")
    concerned = same_patient | same_recording
    count, doubts = int(concerned.sum()), list(dict.fromkeys(doubts))
    if count:
        status = FOUND
        where = " and ".join(_described(each) for each in known.sets)
        note = f"{count} of {len(rows)} records are of patients or recordings it was trained on ({where})"
    else:
        status = UNKNOWN if doubts else NONE
        note = "; ".join(doubts) if doubts else f"none of these {len(rows)} records, by patient and by recording"
    distinct = len(np.unique(shard_set.patients[rows][concerned]))
    everybody = len(np.unique(shard_set.patients[rows]))
    recorded = int(same_recording.sum())
    twice = under_several_patients(shard_set, rows)
    return Overlap(status, count, distinct, recorded, note, len(rows), everybody, "; ".join(doubts), twice)


def under_several_patients(shard_set: ShardSet, rows: np.ndarray) -> int:
    """Recordings of these rows that stand under more than one patient; only the index is read."""
    pairs = np.stack([recording_digests(shard_set, rows), shard_set.patients[rows].astype(np.int64)], axis=1)
    of_a_recording = np.unique(np.unique(pairs[pairs[:, 0] != 0], axis=0)[:, 0], return_counts=True)[1]
    return int((of_a_recording > 1).sum())


def refuse_overlap(overlap: Overlap, encoder: UsableEncoder, shard_set: ShardSet) -> None:
    """Raises UserError where records would be scored that the encoder was trained on."""
    if overlap.status == FOUND:
        raise UserError(
            f"encoder {encoder.digest[:12]} was trained on what is to be scored in {shard_set.path}: {overlap.note}",
            "choose --folds, a --split or a shard set that it has not seen; "
            "--allow-trained scores all the same, and says so beside the figures",
        )


def _filled(each: TrainedSet, shard_set: ShardSet) -> TrainedSet:
    """A set that is known by its facts alone, filled from the set itself."""
    if each.patients is not None:
        return each
    split = each.facts["split"]
    rule = None if split is None else SplitRule(split["split"], split["salt"], tuple(split["fractions"]))
    rows = shard_set.select(folds=each.facts["folds"], split=rule).rows
    return TrainedSet(each.facts, patient_digests(shard_set, rows), recording_digests(shard_set, rows))


def _patients_comparable(each: TrainedSet, shard_set: ShardSet) -> tuple[bool, str | None]:
    """Whether equal patient ids of the two sets mean the same person, and the doubt that is left.

    Salts are kept nowhere: of two salted sets of one source, a patient in common shows that the salts are the same. The
    same holds for ids out of people's own tables, which may number one person in two ways. Another source numbers its
    own people, and may hold the same ones: an archive is published again within another, or as plain arrays.
    """
    facts, salted, name = each.facts, is_salted(shard_set), source_name(shard_set)
    if facts["fingerprint"] == shard_set.fingerprint:
        return True, None
    if facts["source"] != name:
        return False, (
            f"no recording is stored alike, but {facts['source']} and {name} number their patients each in its own "
            "way, and a recording that was scaled, filtered or cut anew looks like another one"
        )
    own_ids = name in OWN_IDS
    if not facts["salted"] and not salted and not own_ids:
        return True, None
    assert each.patients is not None, "a set that is known by its facts alone is filled or passed over"
    everybody = patient_digests(shard_set, np.arange(len(shard_set)))
    if facts["salted"] == salted and np.isin(everybody[everybody != 0], each.patients).any():
        return True, None
    why = "hashed with a salt there or here" if facts["salted"] or salted else "those of somebody's own table"
    return False, (
        f"no recording is the same, but patient ids of {facts['source']} are {why}: "
        "whether patients are the same is not known"
    )


def _described(each: TrainedSet) -> str:
    facts = each.facts
    words = [str(facts.get("source") or "shard set"), facts["fingerprint"][:12]]
    if facts["folds"] is not None:
        words.append(f"folds {','.join(map(str, facts['folds']))}")
    if facts["split"] is not None:
        words.append(f"split {facts['split']['split']}")
    return " ".join(words)


def note_ledger(
    task: ProbeTask, shard_set: ShardSet, figures: Mapping[str, UsableEncoder | None], *, allow_trained: bool
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
        lines.append(of_pretraining(figure, scored, overlap.to_dict()))
    lines.append(_of_labelled(scored, shard_set, task.rows[task.parts.train], rows))
    task.about["ledger"] = [line.to_dict() for line in lines]
    task.about["test_recordings_twice"] = under_several_patients(shard_set, rows)


def _never_trained(figure: str, scored: str, shard_set: ShardSet, rows: np.ndarray) -> LedgerLine:
    """The line of a floor whose features nobody trained."""
    patients = len(np.unique(shard_set.patients[rows]))
    return LedgerLine(figure, scored, PRETRAINING, NONE, 0, patients, 0, len(rows), NOTHING_TRAINED)


def _of_labelled(scored: str, shard_set: ShardSet, train: np.ndarray, test: np.ndarray) -> LedgerLine:
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
