"""What a method may be made of.

Each kind of loss, draw and state gives the same run on every topology, through stops and moves.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.order.contract import local_slice
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.training.data import open_data
from tests.support.invented import invented_config, run, state, trace
from tests.support.processes import run_ranks
from tests.support.tiny_shards import make_shards

EVERYTHING, STEPS = {"name": "everything"}, 6
BUFFERS = ("teacher.0.weight", "teacher.2.bias", "queue", "codes")


def jobs(
    rank: int, world: int, shards: Path, root: Path, wanted: list[tuple[str, dict[str, Any], dict[str, Any]]]
) -> list[Any]:
    """The runs called `name`, one after the other: (name, method, options)."""
    return [run(shards, root / name, method, **options) for name, method, options in wanted]


ONE = [
    ("one", EVERYTHING, {"zero_stage": 1}),
    ("one-cut", EVERYTHING, {"zero_stage": 0, "micro_batch": 4}),
    ("rows", {"name": "rows"}, {"zero_stage": 1}),
    ("rows-cut", {"name": "rows"}, {"zero_stage": 1, "micro_batch": 4}),
    ("rows-twice", {"name": "rows", "passes": 2}, {"zero_stage": 1, "micro_batch": 4}),
    ("moved", EVERYTHING, {"zero_stage": 2}),
    ("moved-3", EVERYTHING, {"zero_stage": 3}),
]
TWO = [
    ("two-1", EVERYTHING, {"zero_stage": 1}),
    ("two-2", EVERYTHING, {"zero_stage": 2, "micro_batch": 3}),
    ("two-3", EVERYTHING, {"zero_stage": 3, "micro_batch": 4}),
    ("stopped", EVERYTHING, {"zero_stage": 3, "micro_batch": 4, "stop_after": 2}),
    ("stopped", EVERYTHING, {"zero_stage": 3, "micro_batch": 4}),
    ("moved", EVERYTHING, {"zero_stage": 2, "stop_after": 2}),
    ("moved-3", EVERYTHING, {"zero_stage": 3, "stop_after": 2}),
    ("rows-two", {"name": "rows"}, {"zero_stage": 2, "micro_batch": 2}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two workers first: `moved` goes on with one."""
    root = tmp_path_factory.mktemp("contract")
    shards = make_shards(root / "shards")
    two = run_ranks(2, jobs, shards, root, TWO, init=False, deadline=200)
    one = run_ranks(1, jobs, shards, root, ONE, init=False, deadline=200)
    results = {name: result for (name, _, _), result in zip(TWO, two[0], strict=True)}
    results |= {name: result for (name, _, _), result in zip(ONE, one[0], strict=True)}
    return root, results


@pytest.mark.processes
@pytest.mark.parametrize("name", ["one-cut", "two-1", "two-2", "two-3"])
@pytest.mark.parametrize("figure", ["loss", "reconstruction", "matching", "adversary", "grad_norm"])
@pytest.mark.slow
def test_every_loss_alone_and_added_up_is_that_of_the_global_batch(runs: Any, name: str, figure: str) -> None:
    root, _ = runs
    reference = trace(root / "one", figure)
    assert len(reference) == STEPS and len(set(reference)) == STEPS
    np.testing.assert_allclose(trace(root / name, figure), reference, rtol=2e-4 if figure == "grad_norm" else 3e-5)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["one-cut", "two-1", "two-2", "two-3"])
@pytest.mark.slow
def test_teacher_queue_and_codebook_are_the_same_on_every_topology(runs: Any, name: str) -> None:
    _, results = runs
    reference, found = state(results["one"]), state(results[name])
    assert set(reference) == set(found)
    for buffer in BUFFERS:
        np.testing.assert_allclose(found[buffer], reference[buffer], atol=2e-4, err_msg=buffer)


@pytest.mark.processes
@pytest.mark.slow
def test_a_stopped_run_with_a_teacher_continues_bit_for_bit_under_zero_3(runs: Any) -> None:
    root, results = runs
    assert results["stopped"].resumed_from == 2
    assert trace(root / "stopped") == trace(root / "two-3")
    whole, parts = state(results["two-3"]), state(results["stopped"])
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["moved", "moved-3"])
@pytest.mark.slow
def test_teachers_queues_and_codebooks_move_to_another_world_size(runs: Any, name: str) -> None:
    root, results = runs
    assert results[name].resumed_from == 2 and results[name].steps == STEPS
    np.testing.assert_allclose(trace(root / name), trace(root / "one"), rtol=5e-5)
    for buffer in BUFFERS:
        np.testing.assert_allclose(
            state(results[name])[buffer], state(results["one"])[buffer], atol=2e-4, err_msg=buffer
        )


@pytest.mark.processes
@pytest.mark.parametrize("name", ["rows-cut", "rows-twice", "rows-two"])
@pytest.mark.slow
def test_a_loss_per_row_is_normalised_by_the_count_of_the_global_batch(runs: Any, name: str) -> None:
    root, _ = runs
    np.testing.assert_allclose(trace(root / name), trace(root / "rows"), rtol=3e-5)


@pytest.mark.processes
@pytest.mark.slow
def test_where_counts_are_known_every_record_is_encoded_once(runs: Any) -> None:
    root, _ = runs
    assert trace(root / "rows-cut", "encoded")[-1] == 13 * STEPS
    assert trace(root / "rows-twice", "encoded")[-1] == 13 * (2 * STEPS - 1), (
        "the last second pass comes after the loss"
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """The state of the method after 1, 2 and 3 updates of one run."""
    root = tmp_path_factory.mktemp("steps")
    shards = make_shards(root / "shards")
    wanted = [(f"upto-{n}", EVERYTHING, {"zero_stage": 1, "stop_after": n}) for n in (1, 2, 3)]
    return [state(result) for result in run_ranks(1, jobs, shards, root, wanted, init=False, deadline=100)[0]]


@pytest.mark.processes
def test_a_part_with_rate_zero_stands_still_and_the_others_do_not(steps: list[dict[str, np.ndarray]]) -> None:
    """The adversary learns at steps 0, 2, 4, ...: after step 1 it is what it was after step 0."""
    first, second, third = steps
    assert np.array_equal(first["adversary.weight"], second["adversary.weight"])
    assert not np.array_equal(second["adversary.weight"], third["adversary.weight"])
    assert not np.array_equal(first["student.0.weight"], second["student.0.weight"])


@pytest.mark.processes
def test_the_teacher_is_the_moving_average_of_the_updated_student(steps: list[dict[str, np.ndarray]]) -> None:
    """teacher = 0.9 teacher before + 0.1 student after the optimizer's step, which `after_update` sees."""
    for before, after in pairwise(steps):
        for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
            expected = 0.9 * before[f"teacher.{name}"].astype(np.float64) + 0.1 * after[f"student.{name}"]
            np.testing.assert_allclose(after[f"teacher.{name}"], expected, rtol=1e-5, atol=1e-7)
            assert np.abs(after[f"teacher.{name}"] - before[f"teacher.{name}"]).max() > 1e-5, "it moves"


@pytest.mark.processes
def test_without_reports_no_bank_is_opened_and_every_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(tmp_path / "shards", silent=7)
    shutil.rmtree(shards / "text_bank")
    (result,) = run_ranks(1, jobs, shards, tmp_path, [("run", {"name": "rows"}, {"steps": 2})], init=False)[0]
    assert result.steps == 2
    monkeypatch.setattr(METHODS, "own", METHODS.own)  # the names are gone with this test
    selected = [len(open_data(invented_config(shards, {"name": name}))[1].rows) for name in ("rows", "everything")]
    assert selected == [60, 53]


def test_draws_belong_to_seed_step_row_and_purpose_alone() -> None:
    whole = Draws(3, 5, slice(0, 11))
    for kind in (
        lambda d: d.uniform("a", 7),
        lambda d: d.normal("a", 2, 3),
        lambda d: d.integers("a", -2, 9, 4),
        lambda d: d.chosen("a", 2, 5),
        lambda d: d.uniform("a"),
    ):
        expected = kind(whole)
        for world in (1, 2, 3, 11):
            parts = [kind(Draws(3, 5, local_slice(11, rank, world))) for rank in range(world)]
            assert np.array_equal(np.concatenate(parts), expected)
        assert np.array_equal(kind(whole), expected), "asking twice changes nothing"
    assert not np.array_equal(whole.uniform("a", 7), whole.uniform("b", 7))
    assert not np.array_equal(whole.uniform("a", 7), Draws(3, 6, slice(0, 11)).uniform("a", 7))
    assert not np.array_equal(whole.uniform("a", 7), Draws(4, 5, slice(0, 11)).uniform("a", 7))


def test_draws_have_the_distribution_they_promise() -> None:
    draws = Draws(0, 0, slice(0, 20_000))
    uniform = draws.uniform("u", 2)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 1 / 2) < 0.005 and abs(uniform.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.02
    normal = draws.normal("n")
    assert abs(normal.mean()) < 0.03 and abs(normal.var() - 1) < 0.03 and abs((normal**4).mean() - 3) < 0.2
    assert np.bincount(draws.integers("i", 0, 4), minlength=4).min() > 4800
    chosen = draws.chosen("c", 2, 5)
    assert (chosen.sum(axis=1) == 2).all() and np.abs(chosen.mean(axis=0) - 0.4).max() < 0.02
    order = draws.permutation("p", 50)
    assert sorted(order.tolist()) == list(range(50)) and order.tolist() != list(range(50))
