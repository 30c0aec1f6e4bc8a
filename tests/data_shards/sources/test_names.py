"""Names as other people give them: every record has a key of its own, and a table finds its file under any of its
names."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.listing import write_listing
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.folder import key_word
from tests.support.wfdb_files import ecg_counts, write_record

UIDS = ("1.2.840.113619.2.55.3.1", "1.2.840.113619.2.55.3.2")
ODD = (
    "a b",
    "a_b",
    "a.b",
    "a#b",
    "a%20b",
    "\u00fcber",
    "\u00f6ber",
    "100%",
    "x" * 200,
    "x" * 201,
    "a'b",
    "-",
    "1.0",
    "10",
)


def array(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, ecg_counts(1000, gain=1000, seed=seed) / 1000)


def test_names_that_a_key_cannot_hold_have_keys_of_their_own(tmp_path: Path) -> None:
    for seed, name in enumerate(ODD):
        array(tmp_path / "src" / f"{name}.npy", seed)
    built = build_shards(
        open_source("arrays", tmp_path / "src", sampling_rate=500),
        tmp_path / "set",
        SetPlan(SignalSpec(500, 2)),
        workers=1,
    )
    shards = ShardSet.open(tmp_path / "set")
    keys = [shards.key(row) for row in range(len(shards))]
    assert built.records == len(ODD) == len(set(keys))
    assert all(re.fullmatch(r"arrays-[A-Za-z0-9_-]{1,82}", key) for key in keys)
    assert {"arrays-a_b", "arrays-10", "arrays--"} <= set(keys), "names that a key can hold stay as they are"
    assert len({record.patient for record in map(shards.read_record, range(len(shards)))}) == len(ODD)


def test_a_name_has_the_same_key_wherever_it_was_written() -> None:
    assert key_word(unicodedata.normalize("NFD", "\u00fcber")) == key_word("\u00fcber") != key_word("uber")
    with pytest.raises(DataError, match="is no record name"):
        key_word("  ")


def test_records_that_are_named_by_uids_are_records_each(tmp_path: Path) -> None:
    for seed, uid in enumerate(UIDS):
        write_record(tmp_path / "study.1" / uid, ecg_counts(1000, seed=seed))
    source = open_source("wfdb", tmp_path)
    entries = list(source.entries())
    assert [entry.path for entry in entries] == [f"study.1/{uid}" for uid in UIDS]
    assert len({entry.key for entry in entries}) == len({entry.meta["patient"] for entry in entries}) == 2
    for seed, entry in enumerate(entries):
        np.testing.assert_array_equal(source.read(entry).counts, ecg_counts(1000, seed=seed))


@pytest.mark.parametrize("folder", ["", "v1.2/", "ward 3/", "stra\u00dfe/", "50%#1/"])
@pytest.mark.parametrize("form", ["{}", "{}.npy", "'{}'", " {} ", "{folder}{}", "{folder}{}.npy"])
@pytest.mark.parametrize("names", [UIDS, ("a b", "a.b"), ("7", "007"), ("\u00fcber", "\u00f6ber")])
def test_a_table_finds_its_files_under_any_of_their_names(
    tmp_path: Path, names: tuple[str, str], form: str, folder: str
) -> None:
    for name in names:
        array(tmp_path / "src" / folder / f"{name}.npy")
    rows = [f"{form.format(name, folder=folder)},{50 + number}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["id,age", *rows, ""]))
    source = open_source(
        "arrays", tmp_path / "src", sampling_rate=500, table=tmp_path / "t.csv", key_column="id", age_column="age"
    )
    ages = {Path(entry.path).name: entry.meta["age_years"] for entry in source.entries()}
    assert ages == {f"{names[0]}.npy": 50.0, f"{names[1]}.npy": 51.0}


def test_a_table_in_composed_letters_finds_files_in_decomposed_ones(tmp_path: Path) -> None:
    array(tmp_path / "src" / (unicodedata.normalize("NFD", "M\u00fcller") + ".npy"))
    (tmp_path / "t.csv").write_text("id,age\nM\u00fcller,50\n")
    source = open_source(
        "arrays", tmp_path / "src", sampling_rate=500, table=tmp_path / "t.csv", key_column="id", age_column="age"
    )
    assert [entry.meta["age_years"] for entry in source.entries()] == [50.0]


@pytest.mark.parametrize("form", ["{}", "{}.hea", "{}.dat", "d.1/{}", "d.1/{}.mat"])
def test_a_table_may_name_either_file_of_a_wfdb_record(tmp_path: Path, form: str) -> None:
    for uid in UIDS:
        write_record(tmp_path / "src" / "d.1" / uid, ecg_counts(1000))
    rows = [f"{form.format(uid)},{50 + number}" for number, uid in enumerate(UIDS)]
    (tmp_path / "t.csv").write_text("\n".join(["id,age", *rows, ""]))
    source = open_source("wfdb", tmp_path / "src", table=tmp_path / "t.csv", key_column="id", age_column="age")
    assert [entry.meta["age_years"] for entry in source.entries()] == [50.0, 51.0]


def test_files_that_differ_in_their_suffix_alone_are_both_named(tmp_path: Path) -> None:
    array(tmp_path / "src" / "a.npy")
    np.savez(tmp_path / "src" / "a.npz", signal=ecg_counts(100) / 200, fs=500)
    with pytest.raises(DataError, match=r"'arrays-a' occurs more than once: a\.npy .* and a\.npz"):
        write_listing(open_source("arrays", tmp_path / "src", sampling_rate=500), tmp_path / "listing", 10)


def test_a_name_that_is_no_utf_8_is_built_or_rejected_by_name(tmp_path: Path) -> None:
    root = tmp_path / "src"
    array(root / "good.npy")
    for name, content in ((b"f\xffne.npy", (root / "good.npy").read_bytes()), (b"b\xffd.npy", b"no array")):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(content)
    (tmp_path / "t.csv").write_text("id,age\ngood,50\n")
    (tmp_path / "labels.csv").write_text("record,label_set,label\ngood,x,A\n")
    built = build_shards(
        open_source(
            "arrays", root, sampling_rate=500, table=tmp_path / "t.csv", key_column="id", age_column="age",
            labels=tmp_path / "labels.csv",
        ),
        tmp_path / "set", SetPlan(SignalSpec(500, 2)), workers=1,
    )  # fmt: skip
    assert (built.records, built.rejected) == (2, {"bad-format": 1})
    assert {record.age_years for record in map(ShardSet.open(tmp_path / "set").read_record, (0, 1))} == {50.0, None}
    assert r"b\udcffd.npy" in (tmp_path / "set/rejects.csv").read_text(encoding="utf-8")


def test_a_path_of_a_table_that_no_disk_holds_costs_its_record_alone(tmp_path: Path) -> None:
    array(tmp_path / "src" / "a.npy")
    (tmp_path / "t.csv").write_text("id,path\na,a.npy\nb," + "x/" * 3000 + "x\nc,a\0b\nd," + "y" * 300 + "\n")
    source = open_source(
        "arrays", tmp_path / "src", sampling_rate=500, table=tmp_path / "t.csv", key_column="id", path_column="path"
    )
    built = build_shards(source, tmp_path / "set", SetPlan(SignalSpec(500, 2)), workers=1)
    assert built.records == 1 and sum(built.rejected.values()) == 3 and "reader-failed" not in built.rejected


# folds


def folded(tmp_path: Path, rows: str) -> list[dict]:
    for name in "0123":
        array(tmp_path / "src" / f"{name}.npy")
    (tmp_path / "t.csv").write_text("id,pid,fold\n" + rows)
    columns = {"key_column": "id", "patient_column": "pid", "fold_column": "fold"}
    source = open_source("arrays", tmp_path / "src", sampling_rate=500, table=tmp_path / "t.csv", **columns)
    return [entry.meta for entry in source.entries()]


def test_a_patient_in_two_folds_of_a_table_is_told_with_his_folds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folded(tmp_path, "0,p1,1\n1,p1,2\n2,p2,1\n3,p3,2\n")
    assert "patients in several folds source=arrays patients=1" in caplog.text and "'p1' in 1, 2" in caplog.text


def test_a_patient_who_is_written_in_two_ways_is_still_in_two_folds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folded(tmp_path, "0,17,1\n1,17.0,2\n2,18,1\n3,19,2\n")
    assert "patients=1" in caplog.text and "'17' in 1, 2" in caplog.text


def test_patients_of_one_fold_each_are_nothing_to_tell_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = folded(tmp_path, "0,p1,1\n1,p1,1.0\n2,,2\n3,nan,3\n")
    assert "several folds" not in caplog.text and [meta["fold"] for meta in told] == [1, 1, 2, 3]
    assert len({meta["patient"] for meta in told}) == 3, "who is not named is a patient of his own"


def test_patients_who_differ_in_capitals_or_leading_zeros_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = folded(tmp_path, "0,p1,1\n1,P1,2\n2,007,1\n3,7,2\n")
    assert len({meta["patient"] for meta in told}) == 4, "an id is what its table says"
    assert "patients spelled alike source=arrays names=2" in caplog.text
    assert "'p1' and 'P1'; '007' and '7'" in caplog.text


def test_ids_of_records_without_a_patient_and_other_numbers_are_nothing_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folded(tmp_path, "0,,1\n1,,2\n2,70,1\n3,p7,2\n")
    assert "spelled alike" not in caplog.text


@pytest.mark.parametrize("fold", ["train", "-1", "1.5", "\u00b2", "40000", "9" * 4301, ""])
def test_a_fold_that_is_none_is_named(tmp_path: Path, fold: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv: the fold .* is no number from 0 to 32767"):
        folded(tmp_path, f"0,p1,{fold}\n1,p2,1\n2,p3,1\n3,p4,1\n")
