"""The CSV tables of data sets: what is wrong with one is said with its name."""

from __future__ import annotations

import pytest

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.reading.tables import read_table


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
