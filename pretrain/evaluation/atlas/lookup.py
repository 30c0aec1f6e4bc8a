"""What lies nearest in an encoder's space: records to a record or to a text, reports to a record.

Legend: n records, M distinct reports, e embedding_dim, k answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress, embed_set
from cardialign.pretrain.evaluation.zero_shot import tell_cut
from cardialign.pretrain.export.usable import UsableEncoder

LONGEST_TEXT = 10_000
"""Characters of a text that is asked about: far beyond every report."""
TEXT_BATCH = 256


@dataclass(frozen=True)
class Found:
    """One answer. cosine: to what was asked about; key: of a record; report: its text, "" of a record without one;
    records: that have the report; same_patient: as the record that was asked about; own: the report of that record."""

    cosine: float
    report: str
    key: str = ""
    records: int = 0
    same_patient: bool = False
    own: bool = False

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {"cosine": round(self.cosine, 6), "report": self.report}
        if self.key:
            return {**told, "key": self.key, "same_patient": self.same_patient}
        return {**told, "records": self.records, "own": self.own}


@dataclass(frozen=True)
class Asked:
    """Among which rows int64 (n,) of a set is looked, and how many answers k are wanted."""

    shard_set: ShardSet
    rows: np.ndarray
    count: int = 10
    batch_size: int = 64


def records_of_text(encoder: UsableEncoder, asked: Asked, text: str, progress: Progress | None = None) -> list[Found]:
    """The records nearest to a text, nearest first; a text longer than the encoder reads is told.

    Raises UsageError for a text without words, UserError when the encoder was trained without reports.
    """
    if not text.strip():
        raise UsageError("the text is empty", 'give a statement, for example --text "Atrial fibrillation"')
    if len(text) > LONGEST_TEXT:
        raise UsageError(f"the text has {len(text):,} characters", f"give at most {LONGEST_TEXT:,}")
    read = encoder.tokens_of([text])
    if read is not None:
        tell_cut("text", read[1], read[0].shape[1])
    vector = encoder.embed_text([text])[0]
    return _records(asked, _embedded(encoder, asked, progress) @ vector, None)


def near_record(
    encoder: UsableEncoder, asked: Asked, key: str, *, reports: bool = True, progress: Progress | None = None
) -> tuple[list[Found], list[Found]]:
    """The records nearest to a record, itself left out, and the distinct reports nearest to it; nearest first.

    reports False: no reports, as of an encoder without a text side. Raises DataError for a key that the set does not
    hold, UserError as `UsableEncoder.embed_text`.
    """
    row = int(asked.shard_set.select(keys=[key]).rows[0])
    among = np.unique(np.append(asked.rows, row))
    every = Asked(asked.shard_set, among, asked.count, asked.batch_size)
    embedding = _embedded(encoder, every, progress)
    vector = embedding[int(np.searchsorted(among, row))]
    records = _records(every, embedding @ vector, row)
    return records, _reports(encoder, every, vector, row) if reports else []


@dataclass(frozen=True)
class Retrieved:
    """An ECG and its report, each as the other's question. reports: nearest to the ECG; rank: of the ECG among the
    `among` records, by its own report, 1 the nearest (records of the same report count as one)."""

    key: str
    own_report: str
    reports: list[Found]
    rank: int
    among: int


def retrieve(
    encoder: UsableEncoder, asked: Asked, rows: Sequence[int], progress: Progress | None = None
) -> list[Retrieved]:
    """What the ECGs of `rows`, which are among those asked, and their reports retrieve of each other.

    Raises UserError as `UsableEncoder.embed_text`; DataError where no record has a report.
    """
    embedding = _embedded(encoder, asked, progress)
    report = asked.shard_set.report[asked.rows]
    distinct, counts, texts, vectors = _distinct_reports(encoder, asked)
    found = []
    for row in rows:
        place, own = int(np.searchsorted(asked.rows, row)), int(asked.shard_set.report[row])
        cosines = vectors @ embedding[place]
        nearest = [
            Found(float(cosines[at]), texts[at], records=int(counts[at]), own=int(distinct[at]) == own)
            for at in _first(cosines, asked.count)
        ]
        at = int(np.searchsorted(distinct, own))
        back = embedding @ vectors[at]
        others = report != own
        rank = 1 + int((back[others] > back[~others].max()).sum())
        found.append(Retrieved(asked.shard_set.key(row), texts[at], nearest, rank, len(asked.rows)))
    return found


def _embedded(encoder: UsableEncoder, asked: Asked, progress: Progress | None) -> np.ndarray:
    return embed_set([encoder], asked.shard_set, asked.rows, EmbedOptions(batch_size=asked.batch_size), progress)[
        0
    ].embedding


def _records(asked: Asked, cosines: np.ndarray, row: int | None) -> list[Found]:
    rows, shard_set = asked.rows, asked.shard_set
    others = np.flatnonzero(rows != row) if row is not None else np.arange(len(rows))
    places = others[_first(cosines[others], asked.count)]
    texts = _texts(shard_set, shard_set.report[rows[places]])
    patient = None if row is None else shard_set.patients[row]
    return [
        Found(
            float(cosines[place]),
            text,
            shard_set.key(int(rows[place])),
            same_patient=patient is not None and bool(shard_set.patients[rows[place]] == patient),
        )
        for place, text in zip(places, texts, strict=True)
    ]


def _reports(encoder: UsableEncoder, asked: Asked, vector: np.ndarray, row: int) -> list[Found]:
    """The distinct reports of the rows that are nearest to the vector (e,)."""
    distinct, counts, texts, vectors = _distinct_reports(encoder, asked)
    cosines, own = vectors @ vector, int(asked.shard_set.report[row])
    return [
        Found(float(cosines[place]), texts[place], records=int(counts[place]), own=int(distinct[place]) == own)
        for place in _first(cosines, asked.count)
    ]


def _distinct_reports(encoder: UsableEncoder, asked: Asked) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Numbers of the M distinct reports of the rows, ascending, how many rows have each, their texts and (M, e)."""
    shard_set = asked.shard_set
    report = shard_set.report[asked.rows]
    distinct, counts = np.unique(report[report >= 0], return_counts=True)
    if not distinct.size:
        raise DataError(f"no record of {shard_set.path} that was chosen has a report", "choose other folds")
    statements = shard_set.report_columns(["statements"]).column("statements")
    texts = [join_statements(statements[int(each)].as_py(), encoder.report_style) for each in distinct]
    vectors = [encoder.embed_text(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
    return distinct, counts, texts, np.concatenate(vectors)


def _first(cosines: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest, largest first; of equals the earlier."""
    return np.argsort(-cosines.astype(np.float64), kind="stable")[:count]


def _texts(shard_set: ShardSet, reports: Sequence[int] | np.ndarray) -> list[str]:
    if not (np.asarray(reports) >= 0).any():
        return [""] * len(reports)
    statements = shard_set.report_columns(["statements"]).column("statements")
    return [join_statements(statements[int(each)].as_py()) if each >= 0 else "" for each in reports]
