"""Cells on Ray have the figures of a local run to the bit, and a killed worker's cell is tried again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.evaluations.ray_cells import RayCells, work_on_cell
from cardialign.data_shards.errors import DataError, UserError
from cardialign.pretrain.evaluation.probing.cells import CellJob, InThisProcess, Outcome, keep_systems, keep_task
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.probing.report import ProbeOptions, ProbeResult
from cardialign.pretrain.evaluation.probing.systems import System
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask

N = 300


def jobs_in(folder: Path) -> list[CellJob]:
    """Two systems of one task at three shares, the smallest of them impossible: one record."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(N, 40)).astype(np.float32)
    truth = features[:, :3] + 0.5 * draw.normal(size=(N, 3)) > 0.3
    parts = Parts(np.arange(150), np.arange(150, 200), np.arange(200, N))
    about = {"records": {"train": 150, "val": 50, "test": 100}, "test_patients_in_training": 0}
    names = [(f"C{k}", f"class {k}") for k in range(3)]
    task = ProbeTask("made-up", names, np.arange(N), truth, np.arange(N) // 2, parts, None, about)
    made = [System("encoder", features, "d" * 64), System("untrained", draw.normal(size=(N, 8)).astype(np.float32))]
    keep_systems(folder / "systems", made, {"of": "a test"})
    keep_task(folder / "task", task, np.arange(N))
    options = [ProbeOptions((share,), seeds=2, bootstrap=50) for share in (0.005, 0.2, 1.0)]
    return [CellJob(folder / "systems", folder / "task", each) for each in options]


def compared(found: dict[int, Outcome]) -> dict[int, object]:
    return {k: each.to_dict() if isinstance(each, ProbeResult) else each.problem for k, each in found.items()}


def killed_once(job: CellJob, environment: dict[str, str]) -> Outcome:
    """The worker of the whole share dies at its first try."""
    mark = job.task.parent / "killed"
    if job.options.shares == (1.0,) and not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return work_on_cell(job, environment)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_figures_of_a_local_run_to_the_bit_also_after_a_worker_was_killed(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    here = compared(dict(InThisProcess().run(jobs)))
    there = compared(dict(RayCells(None, 2, killed_once).run(jobs)))
    assert (tmp_path / "killed").is_file() and sorted(there) == [0, 1, 2]
    assert there == here and "no class has positives and negatives" in str(here[0])
    assert not list(tmp_path.glob(".task*")), "no sign of life is left"


def test_a_cell_tells_that_it_does_not_see_the_work_and_that_the_work_is_damaged(tmp_path: Path) -> None:
    job = jobs_in(tmp_path)[2]
    assert isinstance(work_on_cell(job, {}), ProbeResult)
    with pytest.raises(DataError, match="does not see the work") as caught:
        work_on_cell(CellJob(tmp_path / "elsewhere", job.task, job.options), {})
    assert "every node mounts" in caught.value.remedy
    features = tmp_path / "systems" / "encoder.npy"
    content = bytearray(features.read_bytes())
    content[-1] ^= 1
    features.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not as it was written"):
        work_on_cell(job, {})


def test_a_share_that_cannot_be_probed_is_an_outcome_and_no_end(tmp_path: Path) -> None:
    found = dict(InThisProcess().run(jobs_in(tmp_path)))
    assert isinstance(found[0], UserError) and "at 0.5 % of 150 training records" in found[0].problem
    assert isinstance(found[1], ProbeResult) and isinstance(found[2], ProbeResult)


def test_figures_do_not_depend_on_how_many_threads_there_are(tmp_path: Path) -> None:
    import torch

    jobs = jobs_in(tmp_path)[1:]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        wide = compared(dict(InThisProcess().run(jobs)))
        assert torch.get_num_threads() == 2, "as it was"
    finally:
        torch.set_num_threads(before)
    assert wide == compared(dict(InThisProcess().run(jobs)))
