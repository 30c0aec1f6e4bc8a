"""Leaks are found where they are planted: a shared patient, a recording under another key, in another unit; and nowhere
else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.leakage import find_leakage, waveform_digest
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.small_source import SmallSource, heart_counts


class Archive(SmallSource):
    """Recordings of its own, but for those of `copied` (number here -> number of the archive of seed 0), stored times
    `unit`."""

    def __init__(
        self,
        records: int,
        *,
        prefix: str,
        seed: int,
        copied: dict[int, int] | None = None,
        unit: int = 1,
        **facts: object,
    ) -> None:
        super().__init__(records, samples=100, seed=seed)
        self.prefix, self.copied, self.unit, self.facts = prefix, copied or {}, unit, facts

    def read(self, entry):
        number = entry.meta["number"]
        record = super().read(entry)
        if number in self.copied:
            record.counts = (heart_counts(np.random.default_rng([0, self.copied[number]]), 100) * self.unit).astype(
                np.int16
            )
            record.lead_mask, record.quality, record.valid_samples = np.ones(12, dtype=bool), {}, 100
        record.patient = f"{self.prefix}{number // 2}"
        return record

    def describe(self):
        return {**super().describe(), "options": {"salted": False}, **self.facts}


ALL = {number: number for number in range(20)}


def build(tmp_path: Path, name: str, archive: Archive) -> ShardSet:
    build_shards(archive, tmp_path / name, SetPlan(SignalSpec(500, 0.2)), workers=1)
    return ShardSet.open(tmp_path / name)


@pytest.fixture
def first(tmp_path: Path) -> ShardSet:
    return build(tmp_path, "first", Archive(20, prefix="p", seed=0, copied=ALL))


def test_sets_of_different_people_share_nothing_but_report_texts(first: ShardSet, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = find_leakage(
        first, build(tmp_path, "b", Archive(12, prefix="q", seed=5)), progress=lambda *now: seen.append(now)
    )
    assert not found.leaked and (found.same_patients, found.same_waveforms, found.records) == (0, 0, (20, 12))
    assert found.same_reports == 11 and found.same_reports_share == pytest.approx(
        11 / 12, abs=1e-4
    )  # every tenth has no report
    assert seen[-1] == (32, 32)


def test_a_shared_patient_is_named(first: ShardSet, tmp_path: Path) -> None:
    other = build(tmp_path, "b", Archive(4, prefix="p", seed=5))
    found = find_leakage(first, other, waveforms=False)
    assert found.leaked and (found.same_patients, found.patient_records, found.same_waveforms) == (2, 4, None)
    assert ("p1", "small-00002", "small-00002") in found.patient_examples


def test_the_same_recording_is_found_under_another_key_and_other_patients(first: ShardSet, tmp_path: Path) -> None:
    other = build(tmp_path, "b", Archive(6, prefix="q", seed=5, copied={4: 17, 5: 8}))
    found = find_leakage(first, other)
    assert found.leaked and (found.same_patients, found.same_waveforms) == (0, 2)
    assert found.waveform_examples == [("small-00017", "small-00004"), ("small-00008", "small-00005")]
    assert "different salts" in found.patients_note


def test_another_unit_is_found_only_when_asked_for(first: ShardSet, tmp_path: Path) -> None:
    other = build(tmp_path, "b", Archive(6, prefix="q", seed=5, copied={4: 17}, unit=5))
    assert find_leakage(first, other).same_waveforms == 0
    assert find_leakage(first, other, scale_free=True).waveform_examples == [("small-00017", "small-00004")]


def test_ids_of_other_archives_or_other_salts_are_not_taken_for_the_same_people(
    first: ShardSet, tmp_path: Path
) -> None:
    elsewhere = build(tmp_path, "b", Archive(4, prefix="p", seed=5, name="other-archive"))
    found = find_leakage(first, elsewhere)
    assert found.same_patients is None and not found.leaked and "small and other-archive" in found.patients_note
    salted = build(tmp_path, "c", Archive(4, prefix="p", seed=5, options={"salted": True}))
    assert "salted" in find_leakage(first, salted).patients_note and find_leakage(first, salted).same_patients is None
    again = build(tmp_path, "d", Archive(6, prefix="p", seed=6, options={"salted": True}))
    found = find_leakage(salted, again)
    assert found.same_patients == 2 and "does not hold the salt" in found.patients_note


@pytest.mark.parametrize("spec", [SignalSpec(250, 0.2), SignalSpec(500, 0.1)])
def test_recordings_at_another_rate_or_length_are_not_called_different_ones(
    first: ShardSet, tmp_path: Path, spec: SignalSpec
) -> None:
    """The very records of `first` under other patients: nothing that can be compared says so."""
    again = Archive(20, prefix="x", seed=0, copied=ALL, name="other-archive")
    build_shards(again, tmp_path / "again", SetPlan(spec), workers=1)
    found = find_leakage(first, ShardSet.open(tmp_path / "again"))
    assert (found.same_waveforms, found.same_patients, found.status) == (None, None, "unknown")
    assert f"b {spec.seconds:g} s at {spec.sampling_rate:g} Hz" in found.waveforms_note


def test_nothing_found_is_none_only_where_patients_and_recordings_were_compared(
    first: ShardSet, tmp_path: Path
) -> None:
    apart = build(tmp_path, "b", Archive(4, prefix="q", seed=5))
    elsewhere = build(tmp_path, "c", Archive(4, prefix="q", seed=5, name="other-archive"))
    assert find_leakage(first, apart).status == "none" and find_leakage(first, first).status == "found"
    assert find_leakage(first, apart, waveforms=False).status == "unknown"
    assert find_leakage(first, elsewhere).status == "unknown"
    own = [
        build(tmp_path, f"own-{it}", Archive(4, prefix=it, seed=seed, name="wfdb")) for it, seed in (("s", 7), ("t", 8))
    ]
    assert find_leakage(*own).status == "unknown" and "somebody's own table" in find_leakage(*own).patients_note
    salted = [
        build(tmp_path, f"salted-{it}", Archive(4, prefix=it, seed=seed, options={"salted": True}))
        for it, seed in (("s", 7), ("t", 8))
    ]
    assert find_leakage(*salted).status == "unknown"


def test_parts_of_one_set_leak_unless_they_are_cut_by_patient(first: ShardSet) -> None:
    halves = find_leakage(first, first, np.arange(0, 11), np.arange(11, 20))
    assert (halves.same_patients, halves.same_waveforms) == (1, 0) and halves.patient_examples == [
        ("p5", "small-00010", "small-00011")
    ]
    train, test = (first.select(split=name).rows for name in ("train", "test"))
    assert not find_leakage(first, first, train, test).leaked
    assert find_leakage(first, first, train, train[:3]).same_waveforms == 3


def test_silence_is_no_recording() -> None:
    assert waveform_digest(np.full((12, 9), 4, dtype=np.int16)) is None
    counts = heart_counts(np.random.default_rng(0), 50)
    counts[3] = 7
    assert waveform_digest(counts) == waveform_digest(counts.copy()) != waveform_digest(counts + 1)
    assert waveform_digest(counts, scale_free=True) == waveform_digest(counts * 3 + 1, scale_free=True)
    assert waveform_digest(counts, scale_free=True) != waveform_digest(counts[:, ::-1], scale_free=True)
