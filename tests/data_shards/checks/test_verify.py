"""Verification finds every kind of damage and names the place; a whole set has nothing to report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from tests.support.small_source import SmallSource


def problems(folder: Path, quick: bool = False) -> str:
    report = verify(folder, quick=quick)
    assert report.ok == (not report.problems)
    return "\n".join(report.problems)


def declare_index_genuine(folder: Path) -> None:
    """Make the manifest vouch for the index as it lies there, so that only its content can give it away."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"]["index.parquet"] = sha256_of(folder / "index.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_set_has_no_problem(small_set_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(small_set_folder, progress=lambda done, total: calls.append((done, total)))
    assert report.ok and (report.records, report.shards) == (88, 3) and calls[-1] == (3, 3)
    assert verify(small_set_folder, quick=True).ok


def test_a_flipped_byte_names_the_record_and_its_offset(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    row = 40
    shard, offset = shards.shard_names[shards.shard[row]], int(shards.offset[row])
    content = bytearray((set_copy / shard).read_bytes())
    content[offset + 100] ^= 4
    (set_copy / shard).write_bytes(content)
    found = problems(set_copy)
    assert (
        f"record {shards.key(row)} in shard {shard} at offset {offset}: the payload does not match its crc32" in found
    )
    assert f"shard {shard} is not the one this set was built with" in found
    assert problems(set_copy, quick=True) == ""


def test_a_flipped_byte_in_a_tar_header_and_in_metadata_is_found(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    file = set_copy / "shard-000000.tar"
    content = bytearray(file.read_bytes())
    content[int(shards.index.column("meta_offset")[3].as_py()) + 1] ^= 1
    file.write_bytes(content)
    assert f"record {shards.key(3)} in shard shard-000000.tar" in problems(set_copy)
    content[int(shards.offset[5]) - 512] ^= 1
    file.write_bytes(content)
    found = problems(set_copy)
    assert f"record {shards.key(5)} in shard shard-000000.tar at offset {shards.offset[5]}: not in the tar" in found
    assert "shard-000000.tar holds 5 records, the manifest says 31" in found


@pytest.mark.parametrize("at_member_boundary", [True, False])
def test_a_truncated_shard_is_found_even_when_cut_between_members(set_copy: Path, at_member_boundary: bool) -> None:
    shards = ShardSet.open(set_copy)
    file = set_copy / "shard-000001.tar"
    cut = int(shards.offset[45]) - 512 + (0 if at_member_boundary else 700)
    with file.open("r+b") as opened:
        opened.truncate(cut)
    assert f"shard-000001.tar has {cut} bytes" in problems(set_copy, quick=True) and "truncated" in problems(
        set_copy, quick=True
    )
    found = problems(set_copy)
    assert (
        f"record {shards.key(45)} in shard shard-000001.tar at offset {shards.offset[45]}: not in the tar, or not "
        "wholly" in found
    )


def test_a_missing_a_stray_and_a_swapped_shard_are_found(set_copy: Path) -> None:
    first, second = set_copy / "shard-000000.tar", set_copy / "shard-000001.tar"
    shutil.copy(first, set_copy / "shard-000007.tar")
    second.unlink()
    for quick in (True, False):
        assert "shard shard-000001.tar is missing" in problems(set_copy, quick)
        assert "shard shard-000007.tar is in the folder but not in the manifest" in problems(set_copy, quick)
    shutil.copy(first, second)
    found = problems(set_copy)
    assert "shard-000001.tar is not the one this set was built with" in found or "shard-000001.tar has" in found
    assert "member small-00000.ecg at offset 512 that index.parquet does not list" in found


def test_a_stale_index_is_found_by_digest_and_by_content(set_copy: Path, tmp_path: Path) -> None:
    build_shards(
        SmallSource(90, seed=9), tmp_path / "other", SetPlan(SignalSpec(500, 1), records_per_shard=32), workers=1
    )
    shutil.copy(tmp_path / "other" / "index.parquet", set_copy / "index.parquet")
    assert "index.parquet is not the one this set was built with" in problems(set_copy, quick=True)
    declare_index_genuine(set_copy)
    assert "stale index" in problems(set_copy, quick=True)
    assert "record small-00003 in shard shard-000000.tar" in problems(set_copy)
    (set_copy / "index.parquet").write_bytes(b"nothing")
    assert "index.parquet cannot be read" in problems(set_copy)
    (set_copy / "reports.parquet").unlink()
    assert "reports.parquet cannot be read" in problems(set_copy, quick=True)


def test_a_duplicated_key_is_found(set_copy: Path) -> None:
    index = pq.read_table(set_copy / "index.parquet")
    keys = index.column("key").to_pylist()
    keys[1] = keys[0]
    pq.write_table(index.set_column(0, "key", [keys]), set_copy / "index.parquet")
    declare_index_genuine(set_copy)
    assert "record small-00000 occurs 2 times in index.parquet: duplicated key" in problems(set_copy, quick=True)


def test_rows_that_point_outside_the_set_are_found(set_copy: Path) -> None:
    index = pq.read_table(set_copy / "index.parquet")
    shard, report = index.column("shard").to_numpy().copy(), index.column("report").to_numpy().copy()
    shard[7], report[8] = 9, 1000
    for name, values in (("shard", shard), ("report", report)):
        position = index.schema.get_field_index(name)
        index = index.set_column(position, index.schema.field(position), [values])
    pq.write_table(index, set_copy / "index.parquet")
    declare_index_genuine(set_copy)
    found = problems(set_copy, quick=True)
    assert "record small-00008 lies in shard number 9" in found
    assert "record small-00009 names report 1000" in found


def test_a_manifest_changed_by_hand_is_found(set_copy: Path) -> None:
    manifest = json.loads((set_copy / "manifest.json").read_text())
    first, second, *_ = manifest["shards"]
    first["records"] += 1
    (set_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is damaged: its shards have 89 records, 'counts' says 88"):
        verify(set_copy, quick=True)
    second["records"] -= 1  # the sum is right again: what a shard held when the set was built is not
    (set_copy / "manifest.json").write_text(json.dumps(manifest))
    found = problems(set_copy, quick=True)
    assert "fingerprint does not follow from its shards" in found
    assert f"in shard {first['name']}, the manifest says {first['records']}: stale index" in found


def test_a_folder_without_a_manifest_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished shard set"):
        verify(tmp_path)


class _WordCount:
    """A text encoder that counts words: a text is one token, the number of them."""

    fingerprint, max_tokens, dim = "words-v1", 3, 2

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), 3), dtype=np.int32)
        ids[:, 0] = [len(text.split()) for text in texts]
        return ids, np.ones(len(texts), dtype=np.int64)

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[1.0, len(text.split())] for text in texts], dtype=np.float32)

    def describe(self) -> dict[str, str]:
        return {"id": self.fingerprint}


def test_a_flipped_a_cut_and_a_missing_array_of_a_text_bank_are_found_by_file(set_copy: Path) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), _WordCount()).path
    assert problems(set_copy) == ""
    mean = bytearray((bank / "mean.npy").read_bytes())
    mean[-1] ^= 1
    (bank / "mean.npy").write_bytes(mean)
    assert problems(set_copy, quick=True) == ""
    assert problems(set_copy) == (
        f"text bank {bank.name}: mean.npy is not the one the bank was built with (its sha256 differs): swapped or "
        "damaged"
    )
    with (bank / "embeddings.npy").open("r+b") as file:
        file.truncate(130)
    (bank / "lengths.npy").unlink()
    found = problems(set_copy, quick=True)
    for sentence in ("embeddings.npy has 130 bytes", "lengths.npy is missing"):
        assert f"text bank {bank.name}: {sentence}" in found
    description = json.loads((bank / "bank.json").read_text())
    (bank / "bank.json").write_text(json.dumps({**description, "shards": "0" * 64}))
    assert "belongs to another shard set (000000000000..." in problems(set_copy, quick=True)
    (bank / "bank.json").write_text("{}")
    assert "bank.json is damaged: it lacks cleaning_version" in problems(set_copy, quick=True)


def test_files_that_belong_to_nothing_are_noted_and_harm_nothing(set_copy: Path) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), _WordCount()).path
    np.save(bank / "distant-3.npy", np.zeros((1, 1), dtype=np.int32))
    assert verify(set_copy).notes == []
    for name, content in {
        "README.md": "mine",
        ".index.parquet.node.7.tmp": "half",
        "text_bank/list.txt": "a",
        f"{bank}/.distant-9.npy.7.vectors": "b",
    }.items():
        (set_copy / name).write_text(content)
    (set_copy / ".build").mkdir()
    (set_copy / "text_bank" / ".0123.building").mkdir()
    (set_copy / "text_bank" / ".0123.building" / "reports-0-9.npz").write_text("blocks")
    left, nothing = (
        "left by a build that was interrupted or is still running",
        "belongs to nothing here and is not read",
    )
    report = verify(set_copy, quick=True)
    assert report.ok and [note.partition(";")[0] for note in report.notes] == [
        f".build (0 bytes): {left}",
        f".index.parquet.node.7.tmp (4 bytes): {left}",
        f"README.md (4 bytes): {nothing}",
        f"text_bank/.0123.building (6 bytes): {left}",
        f"text_bank/{bank.name}/.distant-9.npy.7.vectors (1 bytes): {left}",
        f"text_bank/list.txt (1 bytes): {nothing}",
    ]


def test_another_list_of_rejects_is_a_problem_and_none_is_not(set_copy: Path) -> None:
    rejects = set_copy / "rejects.csv"
    rejects.write_text(rejects.read_text() + "a,b,missing-file,nobody rejected it\n")
    assert "rejects.csv is not the one this set was built with" in problems(set_copy, quick=True)
    rejects.unlink()
    assert problems(set_copy) == "", "it names files of the machine that built the set: a copy may go without"
