"""A patient's split depends on the patient and the salt alone, so it survives added data; fractions hold; no patient is
in two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SPLITS, SplitRule, in_split, split_of
from tests.support.small_source import SmallSource

GOLDEN = ["train", "test", "train", "train", "test", "val", "train", "test", "train", "train", "train", "test"]


def ids(shards: ShardSet) -> list[str]:
    return shards.index.column("patient").to_pylist()


def test_the_split_is_a_contract() -> None:
    assert [split_of(f"p{i}") for i in range(12)] == GOLDEN
    assert [split_of(f"p{i}", "another salt") for i in range(12)] != GOLDEN


def test_fractions_hold_and_growing_the_evaluated_part_takes_patients_from_train_only() -> None:
    patients = [f"patient-{i}" for i in range(5_000)]
    small = {p: split_of(p, fractions=(0.8, 0.1, 0.1)) for p in patients}
    shares = [sum(s == name for s in small.values()) / len(patients) for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    more = {p: split_of(p, fractions=(0.7, 0.2, 0.1)) for p in patients}
    moved = {(small[p], more[p]) for p in patients if small[p] != more[p]}
    assert moved == {("train", "val")}


def test_splits_of_a_set_are_whole_patients_and_all_of_them(small_set: ShardSet) -> None:
    chosen = {name: small_set.select(split=SplitRule(name, fractions=(0.5, 0.25, 0.25))).rows for name in SPLITS}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(chosen.values()))), np.arange(len(small_set)))
    patients = [set(small_set.patients[rows].tolist()) for rows in chosen.values()]
    assert all(patients) and not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    prints = [small_set.select(split=name).fingerprint for name in ("train", "test")] + [small_set.select().fingerprint]
    assert len(set(prints)) == 3


def test_added_data_moves_nobody(small_set: ShardSet, tmp_path: Path) -> None:
    build_shards(SmallSource(40), tmp_path / "fewer", SetPlan(SignalSpec(500, 1)), workers=1)
    fewer = ShardSet.open(tmp_path / "fewer")
    for name in SPLITS:
        before, after = ({ids(s)[row] for row in s.select(split=name).rows} for s in (fewer, small_set))
        assert before & set(ids(small_set)) == after & set(ids(fewer))


def test_records_without_a_patient_are_dealt_one_by_one(tmp_path: Path) -> None:
    class Anonymous(SmallSource):
        def read(self, entry):
            record = super().read(entry)
            record.patient = ""
            return record

    build_shards(Anonymous(60, samples=20), tmp_path / "s", SetPlan(SignalSpec(500, 0.04)), workers=1)
    shards = ShardSet.open(tmp_path / "s")
    rule = SplitRule("train", fractions=(0.5, 0.25, 0.25))
    rows = shards.select(split=rule).rows
    assert 15 < len(rows) < 45
    np.testing.assert_array_equal(
        rows, np.flatnonzero(in_split([f"record:{shards.key(row)}" for row in range(60)], rule))
    )


def test_what_is_no_split_is_refused(small_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        small_set.select(split="dev")
    with pytest.raises(UsageError, match="summing to 1"):
        SplitRule("train", fractions=(0.8, 0.1, 0.2))
    with pytest.raises(DataError, match="is of the part test"):
        small_set.select(split=SplitRule("test", fractions=(1, 0, 0)))
