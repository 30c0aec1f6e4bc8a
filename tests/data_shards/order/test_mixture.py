"""A mixture keeps the order contract for every set in it, and its batches their composition."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.order.mixture import MIXTURE_VERSION, MixtureOrder, slots_of
from cardialign.data_shards.order.substitutes import substitutes
from cardialign.data_shards.order.window import WindowOrder
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream, chain_digest
from tests.support.small_source import SmallSource


def make_mixture(sizes: list[int], weights: list[float], batch: int, seed: int) -> MixtureOrder:
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    orders = [
        GlobalOrder(np.arange(n), None, slots, seed, f"set-{i}")
        for i, (n, slots) in enumerate(zip(sizes, slots_of(weights, batch), strict=True))
    ]
    return MixtureOrder(orders, offsets, seed)


def set_of(rows: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Number of the set of every row of the joined sets."""
    return np.searchsorted(np.cumsum(sizes), rows, side="right")


def test_mixture_version_1_is_what_it_always_was() -> None:
    order = make_mixture([300, 120, 50], [5, 2, 1], 32, 4)
    digest = hashlib.sha256()
    for step in range(60):
        digest.update(order.batch(step).astype("<i8").tobytes())
    assert MIXTURE_VERSION == 1
    assert digest.hexdigest() == "53883f7eb28c8371042b3beba40030032f3cdf474dfd6e197367dbade254eb6a"


# A weight of 0.6 beside three of 5 is one slot of a batch of 30; less is refused, which a test of its own states.
mixtures = st.lists(st.tuples(st.integers(130, 300), st.floats(0.6, 5)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    sets=mixtures,
    batch=st.integers(30, 64),
    seed=st.integers(0, 2**63),
    world=st.integers(1, 64),
    resume=st.integers(0, 11),
)
def test_every_set_is_passed_once_per_its_own_epoch_on_every_world_from_any_step(
    sets, batch, seed, world, resume
) -> None:
    sizes, weights = [n for n, _ in sets], [w for _, w in sets]
    order = make_mixture(sizes, weights, batch, seed)
    trace = [order.batch(step) for step in range(12)]
    np.testing.assert_array_equal(make_mixture(sizes, weights, batch, seed).batch(resume), trace[resume])
    np.testing.assert_array_equal(
        np.concatenate([trace[resume][local_slice(batch, r, world)] for r in range(world)]), trace[resume]
    )
    for rows in trace:
        assert np.unique(rows).size == batch
        np.testing.assert_array_equal(np.bincount(set_of(rows, sizes)), order.slots)
    for number, (n, slots) in enumerate(zip(sizes, order.slots, strict=True)):
        alone = GlobalOrder(
            np.arange(n), None, slots, seed, f"set-{number}"
        )  # whose passes test_global_order.py proves
        for step, rows in enumerate(trace):
            mine = rows[set_of(rows, sizes) == number] - sum(sizes[:number])
            np.testing.assert_array_equal(np.sort(mine), np.sort(alone.batch(step)))


def test_weights_become_slots_by_largest_remainder() -> None:
    assert slots_of([1, 1, 1], 32) == (11, 11, 10)
    assert slots_of([0.7, 0.2, 0.1], 256) == (179, 51, 26)
    assert slots_of([3], 8) == (8,)
    with pytest.raises(UsageError, match=r"set 1 of the mixture has weight 0.001"):
        slots_of([1, 0.001], 64)
    for wrong in ([], [1, -1], [1, float("nan")], [0, 1]):
        with pytest.raises(UsageError, match="not all positive"):
            slots_of(wrong, 8)


def test_slots_are_shuffled_anew_at_every_step_and_differ_by_seed() -> None:
    order, other = make_mixture([300, 300], [1, 1], 64, 1), make_mixture([300, 300], [1, 1], 64, 2)
    first, second, elsewhere = (set_of(rows, [300, 300]) for rows in (order.batch(0), order.batch(1), other.batch(0)))
    assert (first != second).any() and (first != elsewhere).any()
    assert order.fingerprint == other.fingerprint != make_mixture([300, 300], [2, 1], 64, 1).fingerprint


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> list[ShardSet]:
    root = tmp_path_factory.mktemp("mixture")
    for name, records, seed in (("large", 60, 0), ("small", 24, 9)):
        build_shards(
            SmallSource(records, seed=seed), root / name, SetPlan(SignalSpec(500, 1), records_per_shard=16), workers=1
        )
    return [ShardSet.open(root / name) for name in ("large", "small")]


def order_of(shards: ShardSet, slots: int) -> GlobalOrder | WindowOrder:
    chosen = shards.select()
    if len(shards) == 60:
        return WindowOrder(
            chosen.rows, shards.shard[chosen.rows], shards.patients[chosen.rows], slots, 3, chosen.fingerprint, 2
        )
    return GlobalOrder(chosen.rows, shards.patients[chosen.rows], slots, 3, chosen.fingerprint)


def mixture_of(sets: list[ShardSet], weights: list[float], batch: int, seed: int) -> tuple[JoinedSets, MixtureOrder]:
    joined = JoinedSets(sets)
    orders = [order_of(each, slots) for each, slots in zip(sets, slots_of(weights, batch), strict=True)]
    return joined, MixtureOrder(orders, joined.offsets, seed)


def test_the_stream_reads_a_mixture_on_any_world_with_one_digest(two_sets: list[ShardSet]) -> None:
    joined, order = mixture_of(two_sets, [2, 1], 12, 3)
    sizes = [len(each) for each in two_sets]
    digest = "0" * 32
    for step in range(8):
        digest = chain_digest(digest, order.batch(step))
    for world in (1, 3):
        for rank in range(world):
            with ShardStream(
                joined, order, rank=rank, world_size=world, stop_step=8, read_ahead=ReadAhead(threads=1)
            ) as stream:
                for batch in stream:
                    for i, row in enumerate(batch.rows.tolist()):
                        number = int(set_of(np.array(row), sizes))
                        record = two_sets[number].read_record(row - joined.offsets[number])
                        np.testing.assert_array_equal(batch.signal[i], record.millivolts())
                        np.testing.assert_array_equal(batch.lead_mask[i], record.lead_mask)
                        own = two_sets[number].report[row - joined.offsets[number]]
                        assert batch.report[i] == (own if own < 0 else own + number * len(two_sets[0].reports))
            assert stream.digest == digest


def test_the_epochs_of_a_stretch_are_computed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    order = make_mixture([3000, 200], [3, 1], 32, 0)
    assert order.part_of(63) == 0 and order.part_of(64) == 1
    order.prepare(1)  # steps 64..128: epochs 0 and 1 of the large set, 2 to 5 of the small one
    computed: list[int] = []
    compute = GlobalOrder._compute
    monkeypatch.setattr(GlobalOrder, "_compute", lambda self, epoch: computed.append(epoch) or compute(self, epoch))
    order.batch(64)
    order.batch(127)
    assert computed == []


def test_a_substitute_comes_from_the_same_set(two_sets: list[ShardSet]) -> None:
    _, order = mixture_of(two_sets, [1, 1], 12, 3)
    sizes = [len(each) for each in two_sets]
    for step in range(6):
        rows = order.batch(step)
        chosen = substitutes(order, step, {int(rows[5]): 0, int(rows[6]): 0})
        for place, row in chosen.items():
            assert set_of(np.array(row), sizes) == set_of(rows[place], sizes) and row not in rows


def test_patients_are_who_they_are_in_their_set_and_others_than_those_of_the_next(two_sets: list[ShardSet]) -> None:
    codes = JoinedSets(two_sets).patients.tolist()
    ids = [(number, name) for number, each in enumerate(two_sets) for name in each.index["patient"].to_pylist()]
    assert len(codes) == sum(map(len, two_sets)) == len(ids)
    assert len({*zip(codes, ids, strict=True)}) == len(set(ids)) == len(set(codes))


def test_sets_of_different_specs_do_not_mix(two_sets: list[ShardSet], tmp_path: Path) -> None:
    build_shards(SmallSource(5), tmp_path / "longer", SetPlan(SignalSpec(500, 2)), workers=1)
    with pytest.raises(DataError, match="different signal specs"):
        JoinedSets([*two_sets, ShardSet.open(tmp_path / "longer")])
