"""Was the encoder trained on what it is scored on? By patient and by recording, from what its export says.

Patients are compared by their hashed ids, where ids of both sets can mean the same person; recordings by the digest of
their coded signal, which finds them in a set that was built again or hashed with another salt. It does not find one
that was scaled, filtered or cut anew on its way through somebody's files: where patients cannot be compared either,
what is left is unknown, never "no overlap".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.export.loaded import LoadedEncoder
from cardialign.pretrain.export.trained_on import (
    TrainedOn,
    TrainedSet,
    chosen,
    is_salted,
    patient_digests,
    recording_digests,
    source_name,
)

NONE, FOUND, UNKNOWN = "none", "found", "unknown"
OWN_IDS = ("arrays", "wfdb")
"""Sources whose ids are the user's own: names of files, or a column of a table that two exports may number anew."""


@dataclass(frozen=True)
class Overlap:
    """status: none, found or unknown; records: of those to score, how many are of a patient or are a recording that
    the encoder was trained on; patients: how many of them; recordings: the very same ones; note: in words."""

    status: str
    records: int
    patients: int
    recordings: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_overlap(encoder: LoadedEncoder, shard_set: ShardSet, rows: np.ndarray) -> Overlap:
    """What the encoder has seen of these rows. Only the index is read."""
    seen = encoder.trained_on
    known = seen if seen is not None else _by_its_configuration(encoder)
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
    return Overlap(status, count, distinct, int(same_recording.sum()), note)


def refuse_overlap(overlap: Overlap, encoder: LoadedEncoder, shard_set: ShardSet) -> None:
    """Raises UserError where records would be scored that the encoder was trained on."""
    if overlap.status == FOUND:
        raise UserError(
            f"encoder {encoder.digest[:12]} was trained on what is to be scored in {shard_set.path}: {overlap.note}",
            "choose --folds, a --split or a shard set that it has not seen; "
            "--allow-trained scores all the same, and says so beside the figures",
        )


def _by_its_configuration(encoder: LoadedEncoder) -> TrainedOn:
    """Of an export from before records were written down: the one set that its run names, if it names one."""
    training = encoder.provenance.get("training")
    fingerprint = training.get("shards_fingerprint") if isinstance(training, dict) else None
    doubt = "its export does not say which records it was trained on"
    if not isinstance(fingerprint, str) or not fingerprint:
        return TrainedOn(unknown=(doubt,))
    data = encoder.config.data
    rule = None if data.split is None else SplitRule(data.split, data.split_salt, data.split_fractions)
    return TrainedOn((TrainedSet({"fingerprint": fingerprint, **chosen(data.folds, rule)}),), (doubt,))


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
