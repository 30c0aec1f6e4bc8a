"""The order is a versioned contract: the same batches on any world, from any resume point, each record once per epoch,
patients apart."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.order.global_order import ORDER_VERSION, GlobalOrder


def make_order(
    n: int, batch: int, seed: int = 0, patients: np.ndarray | None = None, fingerprint: str = "f"
) -> GlobalOrder:
    return GlobalOrder(np.arange(n) * 3 + 7, patients, batch, seed, fingerprint)


def test_order_version_1_is_what_it_always_was() -> None:
    patients = np.arange(1000) // 3
    digest = hashlib.sha256()
    for order in (
        make_order(1000, 64, 5, patients),
        make_order(1000, 64, 5),
        make_order(1000, 1, 6, patients),
        make_order(64, 64, 7, patients[:64]),
    ):
        for step in range(40):
            digest.update(order.batch(step).astype("<i8").tobytes())
    assert ORDER_VERSION == 1
    assert digest.hexdigest() == "b9e9a9c6278945a36c793a351ce22119330e034447724a460224aa747359c927"


sizes = st.integers(1, 300).flatmap(lambda batch: st.tuples(st.integers(batch, 900), st.just(batch)))


@settings(max_examples=80, deadline=None)
@given(
    size=sizes,
    seed=st.integers(0, 2**63),
    epochs=st.integers(1, 4),
    per_patient=st.one_of(st.none(), st.integers(1, 20)),
)
def test_every_record_occurs_exactly_once_per_epoch(
    size: tuple[int, int], seed: int, epochs: int, per_patient: int | None
) -> None:
    n, batch = size
    patients = None if per_patient is None else np.random.default_rng(seed).integers(0, max(1, n // per_patient), n)
    order = make_order(n, batch, seed, patients)
    steps = -(-epochs * n // batch)
    stream = np.concatenate([order.batch(step) for step in range(steps)])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(stream[epoch * n : (epoch + 1) * n]), order.rows)


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**32), world=st.integers(1, 64), step=st.integers(0, 50))
def test_the_ranks_of_any_world_share_out_the_same_global_batch(
    size: tuple[int, int], seed: int, world: int, step: int
) -> None:
    n, batch = size
    rows = make_order(n, batch, seed).batch(step)
    parts = [rows[local_slice(batch, rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**32), steps=st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_resuming_anywhere_gives_the_same_batches(size: tuple[int, int], seed: int, steps: list[int]) -> None:
    n, batch = size
    patients = np.arange(n) // 2
    undisturbed = make_order(n, batch, seed, patients)
    trace = [undisturbed.batch(step) for step in range(61)]
    resumed = make_order(n, batch, seed, patients)
    for step in steps:
        np.testing.assert_array_equal(resumed.batch(step), trace[step])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(resumed)).batch(steps[0]), trace[steps[0]])


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 60), seed=st.integers(0, 2**32), full=st.integers(2, 12), extra=st.integers(0, 59))
def test_no_batch_holds_a_patient_twice_when_the_stated_conditions_hold(
    batch: int, seed: int, full: int, extra: int
) -> None:
    rng = np.random.default_rng(seed)
    n = (full + 2) * batch + extra
    # random sizes up to the number of full batches, with at least 2 B patients
    counts = np.ones(2 * batch, dtype=int)
    while counts.sum() < n:
        open_patients = np.flatnonzero(counts < full)
        if open_patients.size == 0:
            counts = np.append(counts, 1)
        else:
            counts[rng.choice(open_patients)] += 1
    patients = rng.permutation(np.repeat(np.arange(counts.size), counts))[:n]
    order = make_order(n, batch, seed, patients)
    for step in range(int(3 * n // batch)):
        held = patients[(order.batch(step) - 7) // 3]
        assert np.unique(held).size == batch, f"step {step}"


def test_a_patient_with_more_records_than_batches_is_spread_evenly() -> None:
    patients = np.concatenate([np.zeros(100, int), np.arange(1, 301)])
    order = make_order(400, 40, 3, patients)  # 10 full batches, 100 records of one patient
    in_batch = [int((patients[(order.batch(step) - 7) // 3] == 0).sum()) for step in range(10)]
    assert in_batch == [10] * 10


def test_seed_epoch_data_and_version_all_change_the_order() -> None:
    base = make_order(500, 50, 1)
    first = base.batch(0)
    for other in (make_order(500, 50, 2).batch(0), make_order(500, 50, 1, fingerprint="g").batch(0), base.batch(10)):
        assert (first != other).any()
        assert np.intersect1d(first, other).size < 20


def test_the_shuffle_is_uniform_enough() -> None:
    patients = np.arange(240) // 2
    place = np.zeros((240, 6))
    for seed in range(400):
        order = make_order(240, 40, seed, patients)
        for step in range(6):
            place[(order.batch(step) - 7) // 3, step] += 1
    expected = 400 / 6
    chi_square = float(((place - expected) ** 2 / expected).sum(axis=1).mean())
    assert 4.0 < chi_square < 6.0  # five degrees of freedom


def test_a_selection_smaller_than_a_batch_says_what_to_do() -> None:
    with pytest.raises(DataError, match="10 records are selected, a global batch needs 64") as caught:
        make_order(10, 64)
    assert "lower the global batch to 10" in caught.value.remedy
    with pytest.raises(UsageError, match="rank 2"):
        local_slice(8, 2, 2)
    with pytest.raises(UsageError, match="patients has shape"):
        make_order(10, 2, patients=np.arange(3))
    with pytest.raises(UsageError, match="step is -1"):
        make_order(10, 2).batch(-1)


def test_uneven_and_empty_slices() -> None:
    assert [local_slice(5, rank, 3) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert local_slice(2, 3, 4) == slice(2, 2)
