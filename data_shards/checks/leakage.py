"""Do two shard sets, or two selections of one, share what a fair evaluation must keep apart: a patient, or the very
same recording?

Patients are compared by their hashed ids where ids can mean the same person: one data set, hashed alike. Recordings are
compared by a hash of their decoded counts, which needs no ids and finds a recording that two archives both carry. Equal
report texts are no leak (thousands of patients have "Sinus rhythm. Normal ECG."); their share is information.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_counts, decode_header

FOUND, NONE, UNKNOWN = "found", "none", "unknown"
OWN_IDS = ("arrays", "wfdb")
"""Sources whose ids are the user's own: names of files, or a column of a table that two exports may number anew."""
EXAMPLES = 5
_CHUNK = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Leakage:
    """What selection b shares with selection a. Examples name (patient, key in a, key in b) and (key in a, key in b).

    same_patients: None when the ids cannot be compared (`patients_note` says why); patient_records and same_waveforms:
    records of b concerned; same_waveforms: None when not looked at, or when the recordings cannot be compared
    (`waveforms_note` says why); same_reports: records of b whose report text occurs in a.
    """

    records: tuple[int, int]
    same_patients: int | None
    patient_records: int
    patient_examples: list[tuple[str, str, str]]
    patients_note: str
    patients_doubted: bool
    same_waveforms: int | None
    waveforms_note: str
    waveform_examples: list[tuple[str, str]]
    scale_free: bool
    same_reports: int
    same_reports_share: float

    @property
    def leaked(self) -> bool:
        return bool(self.same_patients or self.same_waveforms)

    @property
    def status(self) -> str:
        """found; none: patients and recordings were compared, and nothing is in both; unknown: nothing was found, but
        one of the two was not compared, or ids that differ may be of one person (patients_doubted)."""
        if self.leaked:
            return FOUND
        left_open = self.same_patients is None or self.patients_doubted or self.same_waveforms is None
        return UNKNOWN if left_open else NONE

    def to_dict(self) -> dict[str, Any]:
        return {"leaked": self.leaked, "status": self.status, **asdict(self)}


def find_leakage(
    a: ShardSet,
    b: ShardSet,
    rows_a: np.ndarray | None = None,
    rows_b: np.ndarray | None = None,
    *,
    waveforms: bool = True,
    scale_free: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> Leakage:
    """Compare the rows (all by default) of two shard sets; a and b may be one set.

    scale_free: recordings also match when one is the other in another unit or with a shifted baseline. Recordings of
    sets of another rate or length are not compared: the same one has other samples there. progress(records read,
    records). Raises DataError for a damaged record.
    """
    rows_a = np.arange(len(a)) if rows_a is None else rows_a
    rows_b = np.arange(len(b)) if rows_b is None else rows_b
    comparable, doubted, note = _patients_comparable(a, b)
    patients, examples, concerned = _same_patients(a, b, rows_a, rows_b) if comparable else (None, [], 0)
    matches: list[tuple[str, str]] = []
    told = _recordings_differ(a, b) if waveforms else "recordings were not looked at"
    if not told:
        total = len(rows_a) + len(rows_b)
        digests_a = _digests(a, rows_a, scale_free, threads, progress, 0, total)
        digests_b = _digests(b, rows_b, scale_free, threads, progress, len(rows_a), total)
        pairs = _equal(digests_a, digests_b)
        matches = [(a.key(rows_a[i]), b.key(rows_b[j])) for i, j in pairs]
        if pairs and comparable and a.path != b.path and not patients:
            note += (
                "; yet the same recordings have different patient ids, so ids do not mean the same people in both "
                "(different salts?)"
            )
    shared = _same_reports(a, b, rows_a, rows_b)
    return Leakage(
        records=(len(rows_a), len(rows_b)),
        same_patients=patients,
        patient_records=concerned,
        patient_examples=examples,
        patients_note=note,
        patients_doubted=doubted and not patients,
        same_waveforms=None if told else len(matches),
        waveforms_note=told,
        waveform_examples=matches[:EXAMPLES],
        scale_free=scale_free,
        same_reports=shared,
        same_reports_share=round(shared / max(len(rows_b), 1), 4),
    )


def waveform_digest(counts: np.ndarray, scale_free: bool = False) -> bytes | None:
    """16 bytes that are equal for equal int16 (12, T) counts; None when no lead holds a signal (two silent records are
    not one recording).

    scale_free: each lead's offset and whole-number unit are taken off first, so 1 uV counts and the same counts times 5
    are equal.
    """
    values = np.ascontiguousarray(counts, dtype="<i2")
    if not (values != values[:, :1]).any():
        return None
    if scale_free:
        values = values.astype("<i4")
        values -= values.min(axis=1, keepdims=True)
        values //= np.maximum(np.gcd.reduce(values, axis=1), 1)[:, None]
    return hashlib.blake2b(values.tobytes(), digest_size=16, person=b"ecg waveform").digest()


def _recordings_differ(a: ShardSet, b: ShardSet) -> str:
    """Why the same recording would have other samples in the two sets; "" where it has the same."""
    if a.spec == b.spec:
        return ""
    of_a, of_b = (f"{each.spec.seconds:g} s at {each.spec.sampling_rate:g} Hz" for each in (a, b))
    return f"recordings were not compared: a holds {of_a}, b {of_b}; build one of them again as the other is"


def _patients_comparable(a: ShardSet, b: ShardSet) -> tuple[bool, bool, str]:
    """Whether equal ids of the two mean one person, whether other ids may mean one, too, and both in words."""
    if a.fingerprint == b.fingerprint:
        return True, False, "one shard set: patient ids are comparable"
    (name_a, salted_a), (name_b, salted_b) = _hashing(a), _hashing(b)
    apart = "patients were not compared: "
    if name_a != name_b:
        return False, True, f"{apart}{name_a} and {name_b} number their patients each in its own way"
    if salted_a != salted_b:
        return False, True, f"{apart}the ids of one {name_a} set are salted, those of the other are not"
    checks = [each.manifest["source"].get("options", {}).get("salt_check") for each in (a, b)]
    checked = all(checks)
    if salted_a and checked and checks[0] != checks[1]:
        return False, True, f"{apart}the ids of the two sets are hashed with different salts"
    own = "; they are those of somebody's own table, which may number one person in two ways" * (name_a in OWN_IDS)
    if salted_a and not checked:
        note = (
            "patient ids were compared as they are: a manifest does not hold the salt, so ids of different salts would "
        )
        return True, True, f"{note}look different{own}"
    hashes = f"hashes of the {name_a} ids with one salt" if salted_a else f"unsalted hashes of the {name_a} ids"
    return True, bool(own), f"patient ids of both are {hashes}{own}"


def _hashing(shard_set: ShardSet) -> tuple[str, bool]:
    source = shard_set.manifest["source"]
    return str(source.get("name")), bool(source.get("options", {}).get("salted", False))


def _same_patients(
    a: ShardSet, b: ShardSet, rows_a: np.ndarray, rows_b: np.ndarray
) -> tuple[int, list[tuple[str, str, str]], int]:
    of_a, of_b = (
        a.index.column("patient").take(rows_a).combine_chunks(),
        b.index.column("patient").take(rows_b).combine_chunks(),
    )
    found = pc.and_(pc.is_in(of_b, value_set=pc.unique(of_a)), pc.not_equal(of_b, "")).to_numpy(zero_copy_only=False)
    held = np.flatnonzero(found)
    shared = pc.unique(of_b.take(held)).to_pylist()
    examples = []
    for patient in shared[:EXAMPLES]:
        examples.append(
            (patient, a.key(rows_a[pc.index(of_a, patient).as_py()]), b.key(rows_b[pc.index(of_b, patient).as_py()]))
        )
    return len(shared), examples, len(held)


def _same_reports(a: ShardSet, b: ShardSet, rows_a: np.ndarray, rows_b: np.ndarray) -> int:
    reports_a, reports_b = a.report[rows_a], b.report[rows_b]
    keys_a = a.reports.column("key").take(np.unique(reports_a[reports_a >= 0])).combine_chunks()
    known = pc.is_in(b.reports.column("key").combine_chunks(), value_set=keys_a).to_numpy(zero_copy_only=False)
    return int(known[reports_b[reports_b >= 0]].sum())


def _digests(
    shard_set: ShardSet,
    rows: np.ndarray,
    scale_free: bool,
    threads: int,
    progress: Progress | None,
    done: int,
    total: int,
) -> np.ndarray:
    """uint64 (n, 2) per row; (0, 0) where there is no signal."""

    def chunk(some: np.ndarray) -> list[bytes]:
        out = []
        for row in some:
            payload = shard_set.read_payload(int(row))
            counts = decode_counts(payload, verified=True, samples=shard_set.spec.samples)[
                :, : decode_header(payload).valid_samples
            ]
            out.append(waveform_digest(counts, scale_free) or bytes(16))
        return out

    found: list[bytes] = []
    with ThreadPoolExecutor(threads) as pool:
        for part in pool.map(chunk, (rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK))):
            found += part
            if progress is not None:
                progress(done + len(found), total)
    return np.frombuffer(b"".join(found), dtype="<u8").reshape(-1, 2)


def _equal(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """(position in a, position in b) for every row of b that occurs in a, with its first occurrence there."""
    likely_a, likely_b = np.isin(a[:, 0], b[:, 0]), np.isin(b[:, 0], a[:, 0]) & b.any(axis=1)
    first: dict[tuple[int, ...], int] = {}
    for i in np.flatnonzero(likely_a):
        first.setdefault(tuple(a[i].tolist()), int(i))
    return [(first[key], int(j)) for j in np.flatnonzero(likely_b) if (key := tuple(b[j].tolist())) in first]
