"""Loss, gradient norm and weights do not depend on ZeRO stage, world size or micro-batch (real engines, gloo)."""

import numpy as np
import pytest
import torch

from tests.support import two_towers
from tests.support.processes import run_ranks

CASES = [(stage, micro_batch) for stage in range(4) for micro_batch in (4, 8, None)] + [(2, 1), (3, 1)]


def all_cases(rank: int, world: int) -> list[dict]:
    return [two_towers.train_engine(stage, micro_batch) for stage, micro_batch in CASES]


def schemes_with_dropout(rank: int, world: int) -> dict[str, list[dict]]:
    losses = {scheme: two_towers.tiled_infonce(scheme) for scheme in ("gather", "ring")}
    return {
        scheme: [two_towers.train_engine(2, size, dropout=0.3, loss=loss) for size in (4, None)]
        for scheme, loss in losses.items()
    }


def one_worker(rank: int, world: int) -> tuple[list[dict], dict, dict]:
    dropped = two_towers.train_engine(2, 8, dropout=0.3)
    return all_cases(rank, world), dropped, two_towers.train_engine(2, 8, precision="bf16")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the ranks: a product split over threads is summed in another order,
    and float32 references with dropout show it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone():
    return run_ranks(1, one_worker, init=False, deadline=100)[0]


@pytest.fixture(scope="module")
def reference():
    return two_towers.reference()


def assert_same(result, reference, case):
    # float32 against float64 over a few optimizer steps: rounding grows with each; a mask or a row that differs shows
    # in the second digit
    losses, norms, weights = reference
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-5, err_msg=str(case))
    np.testing.assert_allclose(result["norms"], norms, rtol=2e-5, err_msg=str(case))
    # as one vector: Adam turns the rounding of a gradient near zero into a step of its own for a single weight
    assert np.linalg.norm(result["weights"] - weights) <= 1e-4 * np.linalg.norm(weights), case


@pytest.mark.processes
def test_one_worker_equals_plain_float64_training(alone, reference):
    for case, result in zip(CASES, alone[0], strict=True):
        assert_same(result, reference, case)


@pytest.mark.processes
def test_two_workers_with_uneven_and_empty_micro_batches_equal_plain_float64_training(reference):
    # 25 rows over 2 ranks: 13 and 12; with micro-batch 1 the second rank runs an empty thirteenth micro-batch.
    for results in run_ranks(2, all_cases, init=False, deadline=100):
        for case, result in zip(CASES, results, strict=True):
            assert_same(result, reference, case)


@pytest.mark.processes
def test_dropout_draws_the_same_masks_in_both_passes(alone):
    assert_same(alone[1], two_towers.reference(dropout=0.3, micro_batch=8), "dropout")


@pytest.mark.processes
@pytest.mark.slow
def test_both_schemes_over_ranks_compose_with_micro_batches_and_replayed_dropout():
    for results in run_ranks(2, schemes_with_dropout, init=False, deadline=100):
        for scheme, (cached, whole) in results.items():
            assert_same(cached, two_towers.reference(dropout=0.3, micro_batch=4, world=2), f"{scheme} micro-batch 4")
            assert_same(whole, two_towers.reference(dropout=0.3, world=2), f"{scheme} one pass")


@pytest.mark.processes
def test_bf16_stays_close_to_full_precision(alone, reference):
    np.testing.assert_allclose(alone[2]["losses"], reference[0], rtol=2e-2)
    assert alone[2]["losses"] != alone[0][CASES.index((2, 8))]["losses"]
