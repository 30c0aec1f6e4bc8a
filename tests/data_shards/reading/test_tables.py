"""The CSV tables of data sets: what is wrong with one is said with its name."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.reading.open_quotes import judge_quotes
from cardialign.data_shards.reading.tables import read_table, rows_of


def test_tables_name_every_missing_column(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"t\.csv lacks the columns c, d; it has a, b"):
        read_table(tmp_path / "t.csv", ("a", "c", "d"))
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "none.csv", ("a",))


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n3\n", b"a,b\n\xff\xfe,2\n"], ids=["empty file", "ragged", "not UTF-8"]
)
def test_a_table_that_is_empty_ragged_or_not_utf_8_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv"):
        read_table(tmp_path / "t.csv", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "word"),
    [("id;age\n1;2\n", "';'"),
     ("id\tage\n1\t2\n", "tabs"), ("id|age\n1|2\n", r"'\|'"), ('"id";"age"\n"1";"2"\n', "';'"),
     ("id;age\n1,5;2,5\n", "';'"), ("\ufeffid;age\n1;2\n", "';'")],
)  # fmt: skip
def test_a_table_with_another_separator_is_told_which_it_has_and_what_columns(tmp_path, text, word):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"separated by {word}, not by commas: its columns are id, age") as caught:
        list(rows_of(tmp_path / "t.csv", ("id", "age")))
    assert "to_csv" in caught.value.remedy


def test_the_command_that_is_proposed_for_another_separator_works(tmp_path):
    (tmp_path / "IN").write_text("id;age\n007;2,5\n")
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "IN", ("id",))
    code = caught.value.remedy.partition('python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(rows_of(tmp_path / "OUT", ("id", "age"))) == [{"id": "007", "age": "2,5"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"sep=;\nid;age\n1;2\n", "begins with 'sep=;'"),
        ("id,age\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"id,id,age\n1,2,3\n", "the column id more than once"),
        (b"ID, Age\n1,2\n", "is it 'ID' for 'id', ' Age' for 'age'"),
    ],
)
def test_columns_that_are_almost_there_are_named(tmp_path, content, says):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(rows_of(tmp_path / "t.csv", ("id", "age")))


@pytest.mark.parametrize("name", ["AHA_Code", "AHA_code ", "aha code"])
def test_a_column_that_need_not_be_there_is_not_lost_for_its_spelling(tmp_path, name):
    (tmp_path / "t.csv").write_text(f"id,{name}\n1,C22\n")
    with pytest.raises(DataError, match=f"has the column '{name}', and 'AHA_code' is read"):
        list(rows_of(tmp_path / "t.csv", ("id",), optional=("AHA_code",)))
    (tmp_path / "t.csv").write_text(f"id,AHA_code,{name}\n1,C22,x\n")
    assert list(rows_of(tmp_path / "t.csv", ("id",), optional=("AHA_code",))) == [{"id": "1", "AHA_code": "C22"}]


def test_a_packed_table_that_unpacks_to_far_more_than_tables_do_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cardialign.data_shards.reading.plain_files.LEAST_LIMIT", 1 << 16)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,1\n" * 1_000_000))
    for read in (lambda: read_table(path, ("a",)), lambda: list(rows_of(path, ("a",)))):
        with pytest.raises(DataError, match="unpacks to more than"):
            read()
    rows = b"".join(b"%d,%d\n" % (k * k % 9973, k) for k in range(50_000))
    path.write_bytes(gzip.compress(b"a,b\n" + rows))
    assert len(list(rows_of(path, ("a",)))) == 50_000, "a table of numbers is far from it"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no gzip file that can be unpacked"):
        read_table(path, ("a",))


def test_a_packed_table_that_grew_is_not_unpacked_without_end_to_see_how_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cardialign.data_shards.reading.plain_files.LEAST_LIMIT", 1 << 16)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"1,1\n" * 1_000_000))
    with pytest.raises(OSError, match="unpacks to more than"):
        judge_quotes(tmp_path / "t.csv.gz", pa.table({"a": ["one\ntwo"]}))
