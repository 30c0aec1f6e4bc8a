"""Substitutes follow from seed, step, row and the quarantined rows alone, and keep the rules of a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.order.substitutes import BadSample, describe_bad, substitutes
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import ShardStream, chain_digest
from tests.data_shards.stream.test_stream import flip, order_of, stream_threads


def plain_order(n: int, batch: int, seed: int, per_patient: int = 2) -> GlobalOrder:
    return GlobalOrder(np.arange(n) * 2 + 5, np.arange(n) // per_patient, batch, seed, "f")


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(2, 20),
    more=st.integers(40, 200),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 30),
    data=st.data(),
)
def test_a_substitute_is_selected_readable_new_to_the_batch_and_of_another_patient(
    batch, more, seed, step, data
) -> None:
    order = plain_order(4 * batch + more, batch, seed)
    rows = order.batch(step)
    lost = (
        data.draw(st.lists(st.sampled_from(order.rows.tolist()), max_size=20))
        + rows[: data.draw(st.integers(1, batch))].tolist()
    )
    quarantined = dict.fromkeys(lost, step)
    chosen = substitutes(order, step, quarantined)
    assert sorted(chosen) == [i for i, row in enumerate(rows.tolist()) if row in quarantined]
    final = rows.copy()
    for position, row in chosen.items():
        final[position] = row
    assert np.isin(final, order.rows).all() and not set(final.tolist()) & set(quarantined)
    assert np.unique(final).size == batch
    assert np.unique((final - 5) // 4).size == batch  # two records per patient
    assert substitutes(plain_order(4 * batch + more, batch, seed), step, dict(reversed(quarantined.items()))) == chosen


def test_a_row_counts_as_lost_only_from_its_step_on() -> None:
    order = plain_order(40, 10, 3)
    row = int(order.batch(2)[4])
    assert substitutes(order, 2, {row: 3}) == {}
    assert list(substitutes(order, 2, {row: 2})) == [4]
    again = next(step for step in range(4, 12) if row in order.batch(step))
    assert list(substitutes(order, again, {row: 2})) == [order.batch(again).tolist().index(row)]


def test_substitutes_are_what_they_always_were() -> None:
    order = plain_order(100, 10, 9)
    lost = {int(row): 0 for row in order.batch(4)[:3]}
    assert substitutes(order, 4, lost) == {0: 73, 1: 31, 2: 85}


def test_the_patient_rule_yields_before_the_run_does_and_an_exhausted_selection_says_so() -> None:
    one_patient = GlobalOrder(np.arange(12), np.zeros(12), 10, 0, "f")
    row = int(one_patient.batch(0)[0])
    assert substitutes(one_patient, 0, {row: 0})[0] not in one_patient.batch(0)
    with pytest.raises(DataError, match="no readable record is left"):
        substitutes(one_patient, 0, dict.fromkeys(range(12), 0))


@pytest.mark.parametrize("world", [1, 3])
def test_every_world_goes_on_with_the_same_batch_when_a_byte_of_a_payload_is_flipped(set_copy, world: int) -> None:
    shards = ShardSet.open(set_copy)
    order = order_of(shards)
    row = int(order.batch(2)[7])
    flip(set_copy, shards, row)
    rows = []
    for rank in range(world):
        quarantined: dict[int, int] = {}
        with ShardStream(
            shards, order_of(shards), rank=rank, world_size=world, stop_step=4, quarantined=quarantined
        ) as stream:
            for batch in stream:
                if batch.step == 2:
                    mine = [sample.position for sample in batch.bad]
                    assert mine in ([], [7])
                    if mine:
                        assert (batch.signal[batch.rows.tolist().index(row)] == 0).all() and "crc32" in batch.bad[
                            0
                        ].where()
                    quarantined[row] = 2  # what the ranks agree on
                    stream.substitute(batch, substitutes(order, 2, quarantined))
                    assert batch.bad == []
                rows.append(batch.rows)
                for i, each in enumerate(batch.rows.tolist()):
                    np.testing.assert_array_equal(batch.signal[i], shards.read_record(each).millivolts())
                    assert (
                        batch.report[i] == shards.report[each]
                        and batch.valid_samples[i] == shards.read_record(each).valid_samples
                    )
        expected = "0" * 32
        for step in range(4):
            final = order.batch(step)
            for position, other in substitutes(order, step, quarantined).items():
                final[position] = other
            expected = chain_digest(expected, final)
        assert stream.digest == expected
    assert row not in np.concatenate(rows)
    assert stream_threads() == []


def test_a_substitute_with_a_flipped_byte_is_listed_in_its_turn(set_copy) -> None:
    shards = ShardSet.open(set_copy)
    order = order_of(shards)
    row = int(order.batch(0)[1])
    second = substitutes(order, 0, {row: 0})[1]
    flip(set_copy, shards, row)
    flip(set_copy, shards, second)
    quarantined = {row: 0}
    with ShardStream(shards, order, stop_step=1, quarantined=quarantined) as stream:
        batch = next(stream)
        assert [sample.row for sample in batch.bad] == [row] and "quarantined" in batch.bad[
            0
        ].problem  # not read a second time
        stream.substitute(batch, {1: second})
        assert [(sample.row, sample.position) for sample in batch.bad] == [(second, 1)]


def test_bad_records_are_summed_up_by_shard() -> None:
    samples = [BadSample(i, i, f"r{i}", f"shard-{i % 2}.tar", 0, 0, "crc32") for i in range(7)]
    assert describe_bad(samples) == "shard-0.tar (4 records: r0, r2, r4, ...); shard-1.tar (3 records: r1, r3, r5)"
