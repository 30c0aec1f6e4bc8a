"""The text side on the 3,862 phrases that machine reports of MIMIC-IV-ECG are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cardialign.data_shards.build.report_table import ReportTable
from cardialign.data_shards.report_text import clean_statements, join_statements
from cardialign.data_shards.text.distant import most_distant
from cardialign.data_shards.text.similarity import jaccard, low_rank, low_rank_space, unit
from tests.support.hashing_encoder import HashingEncoder


class Phrases:
    def __init__(self, texts: list[str]) -> None:
        rows = HashingEncoder(dim=96).embed(texts)
        self.raw, self.embeddings = rows, unit(rows - rows.mean(axis=0))

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        return self.embeddings[report_ids]


@pytest.fixture(scope="module")
def statements(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    phrases = (real_data / "mimic-iv-ecg-format" / "report_phrases_esi.txt").read_text().splitlines()
    folder = tmp_path_factory.mktemp("phrases")
    with ReportTable(folder / "texts") as table:
        table.add([clean_statements([phrase]) for phrase in phrases])
        table.write(folder / "reports.parquet")
    assert len(table) == 3080
    return [tuple(each) for each in pq.read_table(folder / "reports.parquet").column("statements").to_pylist()]


@pytest.fixture(scope="module")
def bank(statements: list[tuple[str, ...]]) -> Phrases:
    return Phrases([join_statements(each) for each in statements])


def test_centring_takes_the_offset_off_and_few_axes_keep_the_similarities(bank: Phrases) -> None:
    some = np.random.default_rng(0).integers(3080, size=500)
    assert (
        (bank.raw[some] @ bank.raw[some].T).mean()
        > 0.5
        > 0.1
        > abs((bank.embeddings[some] @ bank.embeddings[some].T).mean())
    )
    axes, errors = low_rank_space(bank)
    assert [each["rank"] for each in errors] == [16, 32, 64]
    assert errors[0]["mean_error"] > errors[1]["mean_error"] > errors[2]["mean_error"]
    whole, low = bank.centred(some), low_rank(bank.centred(some), axes[:, :64])
    assert np.abs(whole @ whole.T - low @ low.T).mean() == pytest.approx(errors[2]["mean_error"], rel=0.1)


def test_the_most_distant_phrases_are_those_of_brute_force_and_no_relatives(
    bank: Phrases, statements: list[tuple[str, ...]]
) -> None:
    table = most_distant(bank.embeddings, 8, row_tile=700, column_tile=900)
    cosine = bank.embeddings @ bank.embeddings.T
    np.fill_diagonal(cosine, np.inf)
    np.testing.assert_allclose(
        np.take_along_axis(cosine, table, 1), np.sort(np.partition(cosine, 8, axis=1)[:, :8], axis=1), atol=1e-6
    )
    words = [set(each[0].casefold().split()) for each in statements]
    shared = [bool(words[i] & words[j]) for i, row in enumerate(table.tolist()) for j in row]
    assert np.mean(shared) < 0.1


def test_statements_of_whole_reports_overlap_as_counted(statements: list[tuple[str, ...]]) -> None:
    rng = np.random.default_rng(1)
    reports = [sorted(set(rng.integers(40, size=rng.integers(1, 6)).tolist())) for _ in range(60)]
    sets = np.cumsum([0, *map(len, reports)]), np.concatenate(reports)
    found = jaccard(sets, sets)
    for i, j in ((0, 1), (5, 44), (17, 17), (59, 3)):
        a, b = ({statements[k] for k in reports[r]} for r in (i, j))
        assert found[i, j] == np.float32(len(a & b) / len(a | b))
