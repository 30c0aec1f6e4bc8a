"""The nearest records and reports are those of the plain cosine, and what is asked wrongly is answered."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.atlas.lookup import Asked, near_record, records_of_text, retrieve
from cardialign.pretrain.evaluation.atlas.weights import lead_weights
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def embedded(planted: ShardSet, encoder: LoadedEncoder) -> np.ndarray:
    signals = np.stack([planted.read_record(row).millivolts() for row in range(len(planted))])
    return encoder.embed(signals, sampling_rate=100)


def test_the_records_nearest_to_a_text_are_those_of_the_cosine(planted, encoder, embedded) -> None:
    text = "Very rapid rhythm"
    cosines = embedded @ encoder.embed_text([text])[0]
    found = records_of_text(encoder, Asked(planted, np.arange(len(planted)), 5), text)
    assert [each.key for each in found] == [planted.key(int(row)) for row in np.argsort(-cosines)[:5]]
    np.testing.assert_allclose([each.cosine for each in found], np.sort(cosines)[::-1][:5], atol=1e-5)
    for each in found:
        row = int(planted.select(keys=[each.key]).rows[0])
        assert each.report == join_statements(planted.read_record(row).statements) and not each.same_patient


def test_a_record_is_not_its_own_neighbour_and_records_of_its_patient_say_so(planted, encoder, embedded) -> None:
    row, every = 7, np.arange(len(planted))
    records, reports = near_record(encoder, Asked(planted, every, len(planted)), planted.key(row))
    assert len(records) == len(planted) - 1 and planted.key(row) not in [each.key for each in records]
    order = [int(other) for other in np.argsort(-(embedded @ embedded[row]), kind="stable") if other != row]
    assert [each.key for each in records[:5]] == [planted.key(other) for other in order[:5]]
    same = {each.key for each in records if each.same_patient}
    mates = np.flatnonzero(planted.patients == planted.patients[row])
    assert same == {planted.key(int(other)) for other in mates if other != row} and same
    texts = {join_statements(planted.read_record(int(other)).statements) for other in every}
    assert {each.report for each in reports} == texts and sum(each.records for each in reports) == len(planted)
    assert [each.report for each in reports if each.own] == [join_statements(planted.read_record(row).statements)]
    cosines = encoder.embed_text([each.report for each in reports]) @ embedded[row]
    np.testing.assert_allclose([each.cosine for each in reports], cosines, atol=1e-5)
    assert (np.diff([each.cosine for each in reports]) <= 1e-6).all()


def test_a_record_outside_the_chosen_ones_may_be_asked_about(planted, encoder) -> None:
    other = np.flatnonzero(planted.fold == 2)
    row = int(np.flatnonzero(planted.fold == 1)[0])
    records, _ = near_record(encoder, Asked(planted, other, 200), planted.key(row), reports=False)
    assert {each.key for each in records} == {planted.key(int(each)) for each in other}


def test_what_is_asked_wrongly_is_answered(planted, encoder) -> None:
    asked = Asked(planted, np.arange(len(planted)), 3)
    with pytest.raises(UsageError, match="the text is empty"):
        records_of_text(encoder, asked, " \n")
    with pytest.raises(UsageError, match="10,001 characters"):
        records_of_text(encoder, asked, "x" * 10_001)
    with pytest.raises(DataError, match="no record 'nobody'"):
        near_record(encoder, asked, "nobody")


def test_a_text_longer_than_the_encoder_reads_is_told(planted, encoder, caplog) -> None:
    """Behind the 60th statement stands what was asked about: the answers are those of the 59 before it."""
    asked = Asked(planted, np.arange(len(planted)), 3)
    records_of_text(encoder, asked, "Atrial fibrillation")
    assert "is not read" not in caplog.text
    before = "Sinus rhythm with words that say nothing. " * 60
    found = [records_of_text(encoder, asked, before + end) for end in ("Atrial fibrillation", "Complete AV block")]
    assert found[0] == found[1]
    assert "text texts=1 of=1 remark=they fill all" in caplog.text and "behind them is not read" in caplog.text


def test_an_encoder_without_a_text_side_finds_records_and_refuses_texts(planted, encoder, embedded) -> None:
    config, contract = encoder.config, encoder.contract
    silent = LoadedEncoder(lambda: config, contract, encoder.ecg, None, provenance={}, digest="silent")
    asked = Asked(planted, np.arange(len(planted)), 3)
    records, reports = near_record(silent, asked, planted.key(0), reports=False)
    assert len(records) == 3 and reports == []
    with pytest.raises(UserError, match="trained without reports"):
        records_of_text(silent, asked, "Atrial fibrillation")


def test_the_weights_of_lead_groups_reach_every_lead_and_sum_to_one(planted, encoder) -> None:
    record = planted.read_record(3)
    found = lead_weights(encoder, record, planted.spec)
    assert set(found) == set(STANDARD_LEADS)
    assert found["V1"] == found["V2"] and found["V1"].group == "septal" and found["II"].group == "inferior"
    assert sum({each.group: each.weight for each in found.values()}.values()) == pytest.approx(1, abs=1e-6)
    record.lead_mask[[STANDARD_LEADS.index(lead) for lead in ("V1", "V2")]] = False
    assert lead_weights(encoder, record, planted.spec)["V1"].weight == 0


def test_an_encoder_without_lead_groups_says_so(planted) -> None:
    plain = untrained_encoder(small_config(encoder={"name": "resnet1d", "embedding_dim": 8}), SPEC, seed=0)
    with pytest.raises(UserError, match="weighs no lead groups"):
        lead_weights(plain, planted.read_record(0), planted.spec)


def test_ecg_and_report_find_each_other_at_the_place_that_counting_gives(planted, encoder, embedded) -> None:
    every, row = np.arange(len(planted)), 7
    (found,) = retrieve(encoder, Asked(planted, every, 3), [row])
    _, nearest = near_record(encoder, Asked(planted, every, 3), planted.key(row))
    assert found.key == planted.key(row) and found.reports == nearest
    own = join_statements(planted.read_record(row).statements)
    assert found.own_report == own and found.among == len(planted)
    cosines = embedded @ encoder.embed_text([own])[0]
    mates = planted.report == planted.report[row]
    assert mates.sum() > 1, "several records have this report: the best of them counts"
    assert found.rank == 1 + sum(cosine > cosines[mates].max() for cosine in cosines[~mates])
