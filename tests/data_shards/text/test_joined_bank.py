"""The joined bank of two sets is the bank of one set that holds the records of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from cardialign.data_shards.text.joined_bank import JoinedBank
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_source import PHRASES, SmallSource


class FirstSource(SmallSource):
    def entries(self) -> list[Entry]:
        return [replace(entry, key=f"first-{entry.key}") for entry in super().entries()]


class SecondSource(SmallSource):
    """Some reports of `SmallSource` (in capitals), some of the same statements in another order, some of its own."""

    def entries(self) -> list[Entry]:
        return [replace(entry, key=f"second-{entry.key}") for entry in super().entries()]

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        number = entry.meta["number"]
        others = (
            tuple(map(str.upper, record.statements)),
            record.statements[::-1],
            ("Paced rhythm", PHRASES[number % 6]),
        )
        return replace(record, statements=others[number % 3] if record.statements else ())


class BothSources(SmallSource):
    def __init__(self) -> None:
        super().__init__(84)
        self.parts = {"first": FirstSource(60), "second": SecondSource(24, seed=9)}

    def entries(self) -> list[Entry]:
        return [entry for part in self.parts.values() for entry in part.entries()]

    def read(self, entry: Entry) -> EcgRecord:
        return self.parts[entry.key.split("-")[0]].read(entry)


@dataclass
class Material:
    joined: JoinedSets
    bank: JoinedBank
    parts: list[TextBank]
    one: ShardSet
    one_bank: TextBank
    here: np.ndarray  # report id of each of the same records, in the joined bank
    there: np.ndarray  # ... and in the bank of one set


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("joined-bank")
    sources = {"first": FirstSource(60), "second": SecondSource(24, seed=9), "one": BothSources()}
    for name, source in sources.items():
        build_shards(source, root / name, SetPlan(SignalSpec(500, 1), records_per_shard=40), workers=1)
    first, second, one = (ShardSet.open(root / name) for name in sources)
    parts = [build_text_bank(each, HashingEncoder()) for each in (first, second)]
    joined = JoinedSets([first, second])
    rows = {one.key(row): row for row in range(len(one))}
    there = np.array([one.report[rows[joined.key(row)]] for row in range(len(joined))])
    here = joined.report
    assert ((here < 0) == (there < 0)).all() and (here < 0).any()
    return Material(
        joined,
        JoinedBank(joined, parts),
        parts,
        one,
        build_text_bank(one, HashingEncoder()),
        here[here >= 0],
        there[there >= 0],
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_batch_reads_as_from_the_bank_of_one_set(material: Material, data: st.DataObject) -> None:
    picks = np.array(data.draw(st.lists(st.integers(0, material.here.size - 1), min_size=1, max_size=20)))
    dim = data.draw(st.sampled_from([None, 4, 32]))
    here, there = material.here[picks], material.there[picks]
    bank, one = material.bank, material.one_bank
    np.testing.assert_array_equal(bank.embedding(here), one.embedding(there))
    for mine, expected in zip(bank.tokens(here), one.tokens(there), strict=True):
        np.testing.assert_array_equal(mine, expected)
    np.testing.assert_allclose(bank.centred(here), one.centred(there), atol=2e-5)
    mine, expected = bank.similarity_features(here, dim), one.similarity_features(there, dim)
    np.testing.assert_allclose(mine @ mine.T, expected @ expected.T, atol=1e-4)
    np.testing.assert_array_equal(bank.jaccard(here), one.jaccard(there))
    keys, others = bank.report_keys(here), one.report_keys(there)
    np.testing.assert_array_equal(keys[:, None] == keys[None, :], others[:, None] == others[None, :])
    indptr, ids = bank.statement_sets(here)
    other_indptr, other_ids = one.statement_sets(there)
    np.testing.assert_array_equal(indptr, other_indptr)
    names, other_names = bank.statements, one.statements
    for at, end in pairwise(indptr):
        assert (np.diff(ids[at:end]) > 0).all()
        assert {names[i].casefold() for i in ids[at:end]} == {other_names[i].casefold() for i in other_ids[at:end]}


def test_the_sets_share_reports_and_the_mean_is_over_all_records(material: Material) -> None:
    bank, one = material.bank, material.one_bank
    everything = np.arange(len(bank))
    assert len(bank) == sum(map(len, material.parts)) and np.unique(bank.report_keys(everything)).size == len(
        one
    ) < len(bank)
    assert (bank.dim, bank.max_tokens, sorted(map(str.casefold, bank.statements))) == (
        one.dim, one.max_tokens, sorted(map(str.casefold, one.statements))
    )  # fmt: skip
    np.testing.assert_allclose(bank.mean, one.mean, atol=1e-6)
    with pytest.raises(DataError, match="not in the text bank"):
        bank.report_keys(np.array([len(bank)]))
    with pytest.raises(DataError, match="without a report"):
        bank.embedding(np.array([-1]))


def test_banks_that_do_not_fit_together_or_to_their_sets_are_refused(material: Material, tmp_path: Path) -> None:
    other = build_text_bank(material.joined.sets[1], HashingEncoder("another"), tmp_path)
    with pytest.raises(DataError, match="differ in encoder_fingerprint") as caught:
        JoinedBank(material.joined, [material.parts[0], other])
    assert str(material.parts[0].path) in str(caught.value) and str(other.path) in str(caught.value)
    assert json.loads((other.path / "bank.json").read_text())["encoder_fingerprint"] == "another"
    with pytest.raises(DataError, match="does not belong to shard set"):
        JoinedBank(material.joined, material.parts[::-1])
