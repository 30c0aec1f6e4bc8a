"""A shard set opens only when it is whole, and answers by row: records, labels, lead masks, selections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set import selection
from cardialign.data_shards.shard_set.layout import content_fingerprint, spec_of
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_counts
from tests.support.small_source import SmallSource

ROOT = Path(__file__).parents[3]


def test_stock_webdataset_iterates_every_record_of_a_set(small_set: ShardSet) -> None:
    urls = [str(small_set.path / name) for name in small_set.shard_names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == small_set.index.column("key").to_pylist()
    for row, sample in enumerate(samples):
        record = small_set.read_record(row)
        np.testing.assert_array_equal(decode_counts(sample["ecg"]), record.counts)
        assert json.loads(sample["json"])["statements"] == list(record.statements)


READ = """
import sys
from cardialign.data_shards.shard_set.shard_set import ShardSet
shards = ShardSet.open(sys.argv[1])
shards.read_record(3), shards.select(require_report=True), shards.labels(shards.select().rows, "rhythm")
floor = "cardialign.data_shards."
print([name for name in sys.modules if name.startswith((f"{floor}build", f"{floor}sources", "scipy", "torch"))])
"""


def test_opening_a_set_and_reading_from_it_loads_no_builder_no_source_and_no_scipy(small_set_folder: Path) -> None:
    words = [sys.executable, "-c", READ, small_set_folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_index_columns_agree_with_the_records(small_set: ShardSet) -> None:
    rows = np.arange(len(small_set))
    records = [small_set.read_record(row) for row in rows]
    np.testing.assert_array_equal(small_set.lead_masks(rows), [record.lead_mask for record in records])
    np.testing.assert_array_equal(small_set.fold, [record.fold for record in records])
    assert (small_set.quality != 0).tolist() == [bool(record.quality) for record in records]
    same_patient = small_set.patients[:, None] == small_set.patients[None, :]
    assert same_patient.tolist() == [[a.patient == b.patient for b in records] for a in records]
    texts = small_set.reports.column("statements").to_pylist()
    for report, record in zip(small_set.report, records, strict=True):
        assert (texts[report] if report >= 0 else []) == list(record.statements)
    counts = small_set.reports.column("count").to_numpy()
    np.testing.assert_array_equal(counts, np.bincount(small_set.report[small_set.report >= 0]))


def test_a_record_without_a_label_set_is_not_labelled_rather_than_negative(small_set: ShardSet) -> None:
    rows = np.array([0, 1, 2, 3, 5])
    numbers = [int(small_set.key(row)[-5:]) for row in rows]
    codes, matrix, labelled = small_set.labels(rows, "form")
    assert codes == ["LBBB", "PVC"]
    for number, held, known in zip(numbers, matrix, labelled, strict=True):
        assert known == (number % 2 == 0)
        assert [code for code, holds in zip(codes, held, strict=True) if holds] == (
            list(("LBBB", "PVC")[: number % 3]) if known else []
        )
    # record 0 is labelled and no code applies to it
    assert labelled[0] and not matrix[0].any()
    with pytest.raises(DataError, match="no label set 'super'") as caught:
        small_set.labels(rows, "super")
    assert "form, rhythm" in caught.value.remedy


def test_selections_keep_what_meets_every_criterion(small_set: ShardSet) -> None:
    everything = small_set.select()
    np.testing.assert_array_equal(everything.rows, np.arange(88))
    chosen = small_set.select(folds=[1, 2, 3], require_report=True, label_set="form")
    for row in range(88):
        record = small_set.read_record(row)
        assert (row in chosen.rows) == (
            record.fold in (1, 2, 3) and bool(record.statements) and "form" in record.labels
        )
    assert small_set.select(keys=["small-00010", "small-00002"]).rows.tolist() == [2, 9]


def test_a_selections_fingerprint_follows_set_criteria_and_rows(small_set: ShardSet) -> None:
    assert small_set.select(folds=[2, 1]).fingerprint == ShardSet.open(small_set.path).select(folds=(1, 2)).fingerprint
    different = {
        small_set.select().fingerprint,
        small_set.select(folds=[1]).fingerprint,
        small_set.select(require_report=True).fingerprint,
    }
    assert len(different) == 3


def test_a_fold_that_no_record_has_is_told_once(small_set: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    selection._tell_absent.cache_clear()
    for _ in range(2):
        found = small_set.select(folds=[0, 1, 2, 41]).rows
    assert np.array_equal(found, small_set.select(folds=[1, 2]).rows)
    assert [each.message.split("folds=")[1] for each in caplog.records] == ["0,41 remark=no record is in them"]


def test_an_empty_selection_says_what_is_there(small_set: ShardSet) -> None:
    with pytest.raises(DataError, match=r"is in fold 99\n") as caught:
        small_set.select(folds=[99])
    assert "folds present: 1, 2" in caught.value.remedy
    with pytest.raises(DataError, match="no record 'nobody'"):
        small_set.select(keys=["small-00002", "nobody"])


def test_a_set_that_is_not_whole_does_not_open(set_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no finished shard set") as caught:
        ShardSet.open(tmp_path)
    assert "not the data set that it reads" in caught.value.remedy
    (tmp_path / ".build").mkdir()
    with pytest.raises(DataError, match="no finished shard set") as caught:
        ShardSet.open(tmp_path)
    assert caught.value.remedy.startswith("finish the build")
    manifest = json.loads((set_copy / "manifest.json").read_text())
    (set_copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        ShardSet.open(set_copy)
    (set_copy / "manifest.json").write_text(json.dumps(manifest)[:-10])
    with pytest.raises(DataError, match="is damaged"):
        ShardSet.open(set_copy)
    manifest["counts"]["records"] += 1
    (set_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is damaged: its shards have 88 records, 'counts' says 89"):
        ShardSet.open(set_copy)
    manifest["shards"][0]["records"] += 1
    (set_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was changed by hand: its fingerprint does not follow from its shards"):
        ShardSet.open(set_copy)
    manifest["fingerprint"] = content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"])
    (set_copy / "manifest.json").write_text(json.dumps(manifest))  # of another set than the index is
    with pytest.raises(DataError, match="88 rows, the manifest says 89 records"):
        ShardSet.open(set_copy)
    (set_copy / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"index.parquet is not the one that this set was built with"):
        ShardSet.open(set_copy)


def test_records_without_a_patient_id_are_patients_of_their_own(tmp_path: Path) -> None:
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.record import SignalSpec

    class Anonymous(SmallSource):
        def read(self, entry):
            record = super().read(entry)
            record.patient = "" if entry.meta["number"] < 4 else "known"
            return record

    build_shards(Anonymous(8), tmp_path / "s", SetPlan(SignalSpec(500, 1)), workers=1)
    codes = ShardSet.open(tmp_path / "s").patients
    assert (
        len(set(codes[:4].tolist())) == 4 and len(set(codes[4:].tolist())) == 1 and not set(codes[:4]) & set(codes[4:])
    )


@pytest.mark.parametrize("row", [88, -89, 10**30, 1.0, "0", None, True])
def test_a_row_that_is_none_is_named_with_those_there_are(small_set_folder: Path, row: Any) -> None:
    shards = ShardSet.open(small_set_folder)
    with pytest.raises(UsageError, match=r"has no record .*: its rows are 0 to 87"):
        shards.read_record(row)
    assert shards.read_record(-1).key == shards.read_record(np.int64(87)).key == shards.key(87)
