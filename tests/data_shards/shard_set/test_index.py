"""Columns of an index: the same numbers in memory and memory-mapped, shared between processes, and never from a file
that another could have written."""

from __future__ import annotations

import os
import pickle
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.shard_set import storage
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.layout import INDEX
from cardialign.data_shards.shard_set.shard_set import ShardSet

PLAIN = {
    "shard": np.int32,
    "offset": np.int64,
    "crc32": np.uint32,
    "fold": np.int16,
    "age_years": np.float32,
    "lead_mask": np.uint16,
}


SEX = {"": 0, "female": 1, "male": 2}


def plain_codes(ids: list[str | None]) -> list[int]:
    """One number per distinct id, by first appearance; a record without an id has one of its own, after those."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(each for each in ids if each is not None))}
    own = iter(range(len(numbers), len(numbers) + len(ids)))
    return [numbers[each] if each else next(own) for each in ids]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_mapped_columns_hold_what_the_table_says(small_set: ShardSet, scratch: Path) -> None:
    table = small_set.index
    for mapped_from in (0, 10**9):
        file = IndexFile(small_set.path / INDEX, small_set.manifest["tables"][INDEX], mapped_from)
        assert file.records == table.num_rows
        for name, dtype in PLAIN.items():
            column = file.column(name, dtype)
            assert isinstance(column, np.memmap) == (mapped_from == 0) and not column.flags.writeable
            np.testing.assert_array_equal(column, table.column(name).to_numpy().astype(dtype))
        assert file.patients().tolist() == plain_codes(table.column("patient").to_pylist())
        assert small_set.sex.tolist() == [SEX[word] for word in table.column("sex").to_pylist()]
        assert [file.key(row) for row in (0, 87, 3)] == [table.column("key")[row].as_py() for row in (0, 87, 3)]
        assert pickle.loads(pickle.dumps(file)).column("size", np.int32).tolist() == table.column("size").to_pylist()


def test_a_column_is_laid_down_once_for_all_processes_and_again_when_it_does_not_fit(
    small_set: ShardSet, scratch: Path
) -> None:
    digest = small_set.manifest["tables"][INDEX]
    first = IndexFile(small_set.path / INDEX, digest, 0).column("size", np.int32)
    path = Path(first.filename)
    inode = path.stat().st_ino
    assert IndexFile(small_set.path / INDEX, digest, 0).column("size", np.int32).tolist() == first.tolist()
    assert path.stat().st_ino == inode
    np.save(scratch / "short.npy", np.zeros(3, np.int32))
    os.replace(scratch / "short.npy", path)
    assert IndexFile(small_set.path / INDEX, digest, 0).column("size", np.int32).tolist() == first.tolist()
    assert not list(path.parent.glob(".*.tmp"))
    path.parent.parent.chmod(0o777)  # others may write here now: it is left alone
    other = IndexFile(small_set.path / INDEX, digest, 0).column("size", np.int32)
    assert path.parent not in Path(other.filename).parents and other.tolist() == first.tolist()
    assert path.parent.parent.name == f"cardialign-index-{os.getuid()}"


@pytest.mark.parametrize("mapped_from", [0, 10**9])
def test_records_without_a_patient_are_patients_of_their_own(scratch: Path, mapped_from: int) -> None:
    ids = ["b", "", "a", None, "a", "", "c"]
    pq.write_table(pa.table({"patient": ids}), scratch / INDEX, row_group_size=4)
    codes = IndexFile(scratch / INDEX, sha256_of(scratch / INDEX), mapped_from).patients()
    assert codes.tolist() == plain_codes(ids)
    assert codes[[0, 2, 4, 6]].tolist() == [0, codes[2], codes[2], codes[6]]
    assert np.unique(codes).size == 6 and codes.dtype == np.int32


def test_an_index_with_zeros_over_its_first_pages_is_an_error_with_its_remedy(set_copy: Path) -> None:
    raw = bytearray((set_copy / INDEX).read_bytes())
    raw[4:200] = bytes(196)
    (set_copy / INDEX).write_bytes(raw)
    with pytest.raises(DataError, match=r"index.parquet is not the one that this set was built with") as caught:
        ShardSet.open(set_copy)
    assert "shards verify" in caught.value.remedy
    with pytest.raises(DataError, match=r"index.parquet cannot be read"):  # nor does a digest that fits make it a table
        IndexFile(set_copy / INDEX, sha256_of(set_copy / INDEX)).key(0)


@contextmanager
def _files_left(spare: int) -> Iterator[None]:
    """All but `spare` of the files that this process may have open are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(held.pop())
        yield
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("spare", [0, 1, 2, 3])
@pytest.mark.parametrize("mapped_from", [0, 10**9])
def test_a_used_up_limit_of_open_files_is_said_and_nothing_is_to_be_copied_or_built_again(
    small_set: ShardSet, scratch: Path, mapped_from: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES", ())
    monkeypatch.setattr(storage.OPEN_FILES, "_most", storage.OPEN_FILES._most)  # as it was, for the tests that follow
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked for again: which needs a file
    index = IndexFile(small_set.path / INDEX, small_set.manifest["tables"][INDEX], mapped_from)
    told = []
    while storage.OPEN_FILES.give_back():
        pass  # what other tests have left open would be closed for these
    with _files_left(spare):
        for read in (lambda: index.column("fold", np.int16), index.patients, index.table):
            try:
                read()
            except StorageError as error:
                told.append(error.remedy)
    assert all(each.startswith("raise the limit of open files") for each in told) and (told or spare)
