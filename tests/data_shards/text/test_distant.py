"""The table of most distant reports is that of brute force, whatever the tiles, and belongs to its bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from cardialign.data_shards.text.distant import build_distant, most_distant
from cardialign.data_shards.text.similarity import unit
from tests.support.hashing_encoder import HashingEncoder


def random_rows(reports: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(reports, width)).astype(np.float32))


def brute_force(rows: np.ndarray, k: int) -> np.ndarray:
    cosine = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(cosine, np.inf)
    return np.argsort(cosine, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize(
    ("reports", "k", "row_tile", "column_tile"),
    [(300, 5, 64, 50), (300, 5, 1024, 8192), (301, 64, 100, 77), (70, 64, 9, 4)],
)
def test_the_table_is_that_of_brute_force(reports: int, k: int, row_tile: int, column_tile: int) -> None:
    rows = random_rows(reports)
    table = most_distant(rows, k, row_tile=row_tile, column_tile=column_tile)
    assert table.dtype == np.int32
    wanted = brute_force(rows, k)
    assert (table == wanted).mean() > 0.999  # two cosines may differ by less than float32 holds
    cosine = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.testing.assert_allclose(np.take_along_axis(cosine, table, 1), np.take_along_axis(cosine, wanted, 1), atol=1e-6)


def test_equal_reports_tie_without_harm() -> None:
    rows = random_rows(10)[np.arange(200) % 10]
    table = most_distant(rows, 30, row_tile=32, column_tile=64)
    cosine = rows @ rows.T
    picked = np.take_along_axis(cosine, table, axis=1)
    np.testing.assert_allclose(picked, np.sort(cosine, axis=1)[:, :30], atol=1e-6)
    assert all(len(set(row)) == 30 for row in table.tolist())
    axes = np.eye(4, dtype=np.float32)[np.arange(40) % 4]  # cosines of exactly 0 and 1: the lower rows win
    np.testing.assert_array_equal(most_distant(axes, 12, row_tile=16, column_tile=7), brute_force(axes, 12))


def test_a_small_set_gives_every_other_report() -> None:
    assert sorted(most_distant(random_rows(4), 64)[2].tolist()) == [0, 1, 3]
    assert most_distant(random_rows(1), 64).shape == (1, 0)
    with pytest.raises(UsageError, match="0 distant reports"):
        most_distant(random_rows(4), 0)


def test_the_table_is_made_once_and_must_fit_its_bank(set_copy: Path) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), HashingEncoder())
    with pytest.raises(DataError, match=r"no distant-3\.npy") as caught:
        bank.distant(3)
    assert "--distant 3" in caught.value.remedy
    seen: list[tuple[int, int]] = []
    table = build_distant(bank, 3, lambda *now: seen.append(now))
    np.testing.assert_array_equal(table, brute_force(bank.centred(np.arange(6)), 3))
    assert seen == [(6, 6)] and isinstance(table, np.memmap)
    assert not [file.name for file in bank.path.iterdir() if file.name.startswith(".")]
    build_distant(bank, 3, lambda *now: pytest.fail("made twice"))
    np.testing.assert_array_equal(TextBank(bank.path).distant(3), table)
    np.save(bank.path / "distant-3.npy", np.zeros((5, 3), dtype=np.int32))
    with pytest.raises(DataError, match=r"distant-3\.npy has \d+ bytes, bank\.json says \d+: truncated") as caught:
        bank.distant(3)
    assert caught.value.remedy.startswith(f"delete {bank.path / 'distant-3.npy'} and run")
    np.save(bank.path / "distant-3.npy", table[::-1])
    with pytest.raises(DataError, match=r"distant-3\.npy is not the one the bank was built with"):
        bank.distant(3)
    # as an earlier release left it: not in bank.json
    np.save(bank.path / "distant-4.npy", np.zeros((5, 4), dtype=np.int32))
    with pytest.raises(DataError, match=r"holds int32 \(5, 4\) for 6 reports"):
        bank.distant(4)
