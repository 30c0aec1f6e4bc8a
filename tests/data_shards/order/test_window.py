"""The windowed order: the contract of the whole-set order, with few shards open at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.order.window import WINDOW_ORDER_VERSION, WindowOrder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream


def make_order(n: int, shards: int, batch: int, seed: int, window: int, per_patient: int = 1) -> WindowOrder:
    shard = np.arange(n) * shards // n
    return WindowOrder(np.arange(n) * 3 + 7, shard, np.arange(n) // per_patient, batch, seed, "f", window)


def test_window_order_version_1_is_what_it_always_was() -> None:
    digest = hashlib.sha256()
    for order in (make_order(1000, 20, 64, 5, 4, 3), make_order(1000, 7, 64, 6, 1), make_order(1000, 20, 1, 7, 50)):
        for step in range(40):
            digest.update(order.batch(step).astype("<i8").tobytes())
    assert WINDOW_ORDER_VERSION == 1
    assert digest.hexdigest() == "46b1f48fa92ca87fd7a4e88e62bf7865887861920815ad07773c466c58c1342b"


shapes = st.tuples(st.integers(1, 64), st.integers(1, 500), st.integers(1, 30), st.integers(1, 12), st.integers(1, 6))


@settings(max_examples=80, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**63), epochs=st.integers(1, 3))
def test_every_record_occurs_exactly_once_per_epoch_whatever_the_windows(shape: tuple, seed: int, epochs: int) -> None:
    batch, more, shards, window, per_patient = shape
    order = make_order(batch + more, min(shards, batch + more), batch, seed, window, per_patient)
    n = order.records
    stream = np.concatenate([order.batch(step) for step in range(-(-epochs * n // batch))])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(stream[epoch * n : (epoch + 1) * n]), order.rows)


@settings(max_examples=50, deadline=None)
@given(
    shape=shapes,
    seed=st.integers(0, 2**32),
    world=st.integers(1, 64),
    micro=st.integers(1, 16),
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=5),
)
def test_any_world_micro_batch_and_resume_point_sees_the_same_batches(
    shape: tuple, seed: int, world: int, micro: int, steps: list
) -> None:
    batch, more, shards, window, per_patient = shape
    make = lambda: make_order(batch + more, min(shards, batch + more), batch, seed, window, per_patient)  # noqa: E731
    undisturbed, resumed = make(), make()
    trace = [undisturbed.batch(step) for step in range(61)]
    for step in steps:
        rows = resumed.batch(step)
        np.testing.assert_array_equal(rows, trace[step])
        shares = [rows[local_slice(batch, rank, world)] for rank in range(world)]
        pieces = [share[at : at + micro] for share in shares for at in range(0, share.size, micro)]
        np.testing.assert_array_equal(np.concatenate(pieces), trace[step])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(resumed)).batch(steps[0]), trace[steps[0]])


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    window=st.integers(1, 5),
    shards=st.integers(1, 25),
    extra=st.integers(0, 9),
)
def test_a_batch_touches_at_most_two_windows_of_shards_and_no_patient_twice(
    batch: int, seed: int, window: int, shards: int, extra: int
) -> None:
    per_shard = 4 * batch + extra  # two records per patient: at least 2 B patients and two full batches in every window
    order = make_order(per_shard * shards, shards, batch, seed, window, 2)
    smallest = min(window, shards // -(-shards // window)) * per_shard
    span = smallest // batch
    for step in range(min(3 * order.records // batch, 150)):
        places = [(order.batch(each) - 7) // 3 for each in range(step, step + span)]
        assert np.unique(places[0] // 2).size == batch
        assert np.unique(np.concatenate(places) // per_shard).size <= order.open_shards == 2 * window


def test_windows_shuffle_within_and_shards_change_company_between_epochs() -> None:
    order = make_order(1200, 12, 20, 1, 3)
    company = []
    for epoch in range(2):
        rows = np.concatenate([order.batch(epoch * 60 + step) for step in range(60)])
        assert np.unique(rows).size == 1200  # sixty steps are one epoch
        shards = (rows - 7) // 300
        company.append([frozenset(shards[at : at + 300].tolist()) for at in range(0, 1200, 300)])
        assert all(len(group) == 3 for group in company[-1])
        inside = shards[:300]
        assert (inside[1:] != inside[:-1]).mean() > 0.5
    assert set(company[0]) != set(company[1])
    assert order.part_of(0) == 0 and order.part_of(15) == 1 and order.part_of(60) == 4


def test_a_selection_out_of_index_order_is_grouped_by_its_shards() -> None:
    mixed = np.random.default_rng(0).permutation(400)
    order = WindowOrder(mixed, mixed // 40, None, 20, 3, "f", 2)
    for step in range(20):
        assert np.unique(order.batch(step) // 40).size <= 4
    np.testing.assert_array_equal(np.sort(np.concatenate([order.batch(step) for step in range(20)])), np.arange(400))


def open_files() -> list[str]:
    """Names of the files that this process has open (Linux)."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            names.append(os.readlink(descriptor))
    return names


def test_the_stream_keeps_no_more_shards_open_than_the_order_needs(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)  # three shards
    chosen = shards.select()
    order = WindowOrder(chosen.rows, shards.shard[chosen.rows], None, 10, 0, chosen.fingerprint, 1)
    with ShardStream(shards, order, stop_step=18, read_ahead=ReadAhead(threads=1, prefetch=1)) as stream:
        for batch in stream:
            assert np.unique(shards.shard[batch.rows]).size <= 2
    assert sum(name.startswith(f"{set_copy}/shard-") for name in open_files()) == order.open_shards == 2
    seen = np.concatenate([order.batch(step) for step in range(9)])
    assert np.unique(seen).size == np.unique(seen[:88]).size == 88


def test_what_cannot_be_ordered_says_why() -> None:
    with pytest.raises(UsageError, match="window of 0 shards"):
        make_order(100, 4, 10, 0, 0)
    with pytest.raises(DataError, match="5 records are selected, a global batch needs 10"):
        make_order(5, 4, 10, 0, 1)
    with pytest.raises(UsageError, match="step is -1"):
        make_order(100, 4, 10, 0, 1).batch(-1)
