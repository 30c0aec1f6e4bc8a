"""Where workers go: never on CPUs without a word where GPUs were meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs.placement import Placement, on_gpus, wanted
from cardialign.data_shards.errors import UsageError, UserError

CPUS = {"CPU": 64.0}


@pytest.mark.parametrize(("gpus", "workers"), [(3, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("local", [True, False])
def test_fewer_gpus_than_workers_are_refused_with_both_ways_out(gpus: int, workers: int, local: bool) -> None:
    with pytest.raises(UserError) as raised:
        on_gpus({**CPUS, "GPU": float(gpus)}, workers, "auto", local=local)
    assert f"{workers} workers asked for, the Ray cluster has {gpus} GPU" in raised.value.problem
    assert f"--workers {gpus}" in raised.value.remedy and "--device cpu" in raised.value.remedy
    assert ("--device gpu" in raised.value.remedy) is not local


def test_enough_gpus_are_taken_and_cpus_are_a_choice() -> None:
    assert on_gpus({**CPUS, "GPU": 4.0}, 4, "auto", local=True) is True
    assert on_gpus({**CPUS, "GPU": 4.0}, 8, "cpu", local=True) is False
    assert on_gpus(CPUS, 8, "auto", local=True) is False
    assert wanted(3, True).together == {"CPU": 3.0, "GPU": 3.0} and wanted(3, False).together == {"CPU": 3.0}


def test_gpus_that_were_asked_for_are_waited_for_on_a_cluster_only() -> None:
    assert on_gpus(CPUS, 2, "gpu", local=False) is True
    with pytest.raises(UserError, match="2 workers asked for, the Ray cluster has 0 GPUs"):
        on_gpus(CPUS, 2, "gpu", local=True)


def test_words_that_mean_nothing_are_refused(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    words = ["pretrain", "--recipe", "simclr-tiny", "--run-dir", tmp_path / "run", "--shards", tmp_path]
    assert cardialign(*words, "--device", "tpu").code == 2
    assert cardialign(*words, "--wait-minutes", "0").code == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="--device 'tpu' is not known"):
        Placement(device="tpu")
    with pytest.raises(UsageError, match="--wait-minutes 0 is not above 0"):
        Placement(wait_minutes=0)
