"""What one call of a study may cost: core hours, GPU hours, or both."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.cluster.evaluations.tasks import RayTasks
from cardialign.cluster.studies.budget import Budget, budget_of, named_with
from cardialign.cluster.studies.ray_cells import StudyJob, on_ray
from cardialign.data_shards.errors import UsageError, UserError

ON_A_GPU = {"cpu_seconds": 90.0, "seconds": 30.0, "device": "cuda"}
ON_A_CORE = {"cpu_seconds": 90.0, "seconds": 95.0, "device": "cpu"}


def asked(hours: float | None = None, gpu_hours: float | None = None, address: str | None = None) -> Budget:
    return budget_of(argparse.Namespace(budget_hours=hours, budget_gpu_hours=gpu_hours, address=address))


def test_cores_and_gpus_are_counted_apart_and_either_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cores, gpus, without = asked(hours=0.05), asked(gpu_hours=0.0125), asked()
    for budget in (cores, gpus, without):
        assert not budget.spent
        budget.spend(ON_A_CORE)
        budget.spend(ON_A_GPU)
        assert (budget.cores, budget.gpus) == (180.0, 30.0)
    assert cores.spent and not gpus.spent and not without.spent, "180 s of 180; 30 s of 45"
    gpus.spend({"cpu_seconds": 1.0, "seconds": 15.0, "device": "cuda"})
    assert gpus.spent and not without.spent


def test_what_a_budget_left_unmade_is_put_down_to_the_budget() -> None:
    def refused(budget: Budget, made: int) -> str:
        with pytest.raises(UserError) as found, named_with(budget, made, 4):
            raise UserError("no seed is whole", "let it go on")
        assert found.value.remedy == "let it go on"
        return found.value.problem

    spent = Budget(core_seconds=1.0, cores=1.0)
    assert refused(spent, 1) == "the budget is spent, 1 of 4 cells are made: no seed is whole"
    assert refused(spent, 4) == refused(Budget(), 1) == "no seed is whole"


def test_gpu_hours_where_there_is_no_gpu_are_refused(
    cardialign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for address in (None, "local"):
        with pytest.raises(UsageError, match="would end nothing: PyTorch sees no GPU"):
            asked(gpu_hours=1.0, address=address)
    assert asked(gpu_hours=1.0, address="auto").gpu_seconds == 3600.0, "its nodes may have some"
    for study in ("parts", "paediatric"):
        answer = cardialign("study", study, "--budget-gpu-hours", 1, "--out", tmp_path / "out")
        assert answer.code == 2 and "--budget-hours (core hours)" in answer.json["remedy"]
    assert not (tmp_path / "out").exists()


def test_each_cell_on_a_ray_has_a_gpu_of_its_own_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RayTasks[StudyJob, None]] = []

    def run(tasks: RayTasks[StudyJob, None], jobs: Iterable[StudyJob]) -> Iterator[tuple[int, None]]:
        seen.append(tasks)
        return iter([(0, None)])

    monkeypatch.setattr(RayTasks, "run", run)
    assert list(on_ray([], "auto", 3)) == [0]
    assert [(tasks.gpu_each, tasks.workers, tasks.address) for tasks in seen] == [(True, 3, "auto")]
