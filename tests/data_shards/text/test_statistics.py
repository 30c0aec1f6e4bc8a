"""Similarity statistics are those of the pairs of a run's own batches; suggested thresholds leave the negatives they
claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from cardialign.data_shards.text.statistics import similarity_statistics
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_source import SmallSource

RHYTHMS = ("Sinus rhythm", "Atrial fibrillation", "Sinus tachycardia", "Paced rhythm")
FINDINGS = (
    "Left axis deviation",
    "Prolonged QT interval",
    "Anterior infarct",
    "Low voltage",
    "Incomplete right bundle branch block",
)


class Talkative(SmallSource):
    """Three statements a report, so that reports overlap in part."""

    def read(self, entry):
        record = super().read(entry)
        rng = np.random.default_rng([7, entry.meta["number"]])
        record.statements = (str(rng.choice(RHYTHMS)), *map(str, rng.choice(FINDINGS, 2, replace=False)))
        return record


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TextBank]:
    folder: Path = tmp_path_factory.mktemp("talk") / "set"
    build_shards(Talkative(160, samples=20), folder, SetPlan(SignalSpec(500, 0.04)), workers=1)
    shards = ShardSet.open(folder)
    return shards, build_text_bank(shards, HashingEncoder())


def test_the_figures_are_those_of_all_pairs_of_the_runs_batches(talkative: tuple[ShardSet, TextBank]) -> None:
    shards, bank = talkative
    rows = np.arange(160)
    found = similarity_statistics(shards, bank, rows, fingerprint="f", global_batches=(32, 64), batches=2, seed=3)
    order = GlobalOrder(rows, shards.patients, 32, 3, "f")
    sets = [{s.casefold() for s in each} for each in shards.reports.column("statements").to_pylist()]
    raw, centred, overlap, same = [], [], [], []
    for step in range(2):
        reports = shards.report[order.batch(step)]
        for i in range(32):
            for j in range(i + 1, 32):
                a, b = reports[i : i + 1], reports[j : j + 1]
                raw.append(float(bank.embedding(a)[0] @ bank.embedding(b)[0]))
                centred.append(float(bank.centred(a)[0] @ bank.centred(b)[0]))
                overlap.append(len(sets[a[0]] & sets[b[0]]) / len(sets[a[0]] | sets[b[0]]))
                same.append(a[0] == b[0])
    assert found.pairs == len(raw) == 2 * 32 * 31 // 2 and found.records == 160
    for spread, values in ((found.raw, raw), (found.centred, centred), (found.jaccard, overlap)):
        assert spread.mean == pytest.approx(np.mean(values), abs=1e-3)
        assert spread.percentiles["90"] == pytest.approx(np.percentile(values, 90), abs=1e-3)
        assert (spread.low, spread.high) == pytest.approx((min(values), max(values)), abs=1e-3)
    assert found.raw.mean > 0.5 > abs(found.centred.mean)
    assert found.duplicate_pairs == pytest.approx(np.mean(same), abs=1e-6)
    small = found.duplicates[0]
    assert small.global_batch == 32 and small.per_record == pytest.approx(2 * np.sum(same) / 64, abs=1e-3)
    embedding, statements = found.suggested
    for each, values in ((embedding, centred), (statements, overlap)):
        alpha = np.where(same, 0, np.clip((each.high - np.array(values)) / (each.high - each.low), 0, 1))
        assert each.effective_negatives["32"] == pytest.approx(31 * alpha.mean(), abs=0.06)
        assert each.effective_negatives["64"] == pytest.approx(63 * alpha.mean(), abs=0.11)


def test_reports_that_share_most_statements_are_above_high_and_unrelated_ones_below_low(
    talkative: tuple[ShardSet, TextBank],
) -> None:
    shards, bank = talkative
    found = similarity_statistics(shards, bank, np.arange(160), fingerprint="f", global_batches=(128,), batches=4)
    embedding = found.suggested[0]
    assert "share no statement" in embedding.reason and 0 <= embedding.low < embedding.high < 1
    reports = np.unique(shards.report)
    centred, overlap = bank.centred(reports), bank.jaccard(reports)
    cosine = centred @ centred.T
    assert (cosine[overlap == 0] < embedding.low).mean() > 0.8
    assert 0.3 < (cosine[(overlap >= 0.5) & (overlap < 1)] >= embedding.high).mean() < 0.7
    assert embedding.yaml()[0] == "method:" and f"  low: {embedding.low:.2f}" in embedding.yaml()


def test_batches_that_cannot_be_filled_are_left_out_and_said_so(talkative: tuple[ShardSet, TextBank]) -> None:
    shards, bank = talkative
    found = similarity_statistics(shards, bank, np.arange(160), fingerprint="f", global_batches=(32, 4096), batches=1)
    assert [each.global_batch for each in found.duplicates] == [32] and found.left_out == [
        "global batch 4096: only 160 records"
    ]
    with pytest.raises(DataError, match="fewer than the smallest global batch 256"):
        similarity_statistics(shards, bank, np.arange(160), fingerprint="f")
    with pytest.raises(UsageError, match="at least two records"):
        similarity_statistics(shards, bank, np.arange(160), fingerprint="f", global_batches=(1,))
