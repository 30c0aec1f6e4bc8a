"""Where workers go: never on CPUs without a word where GPUs were meant."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.train import ScalingConfig

from cardialign.cluster.cli.options import add_placement
from cardialign.cluster.environment.nodes import Node
from cardialign.cluster.runs.placement import (
    Placement,
    check_local,
    on_gpus,
    placement_of,
    scaling,
    threads_of_worker,
    wanted,
)
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
    for minutes in (0.01, 1e6, float("nan")):
        with pytest.raises(UsageError, match="--hang-minutes"):
            Placement(hang_minutes=minutes)


def placed(*words: str) -> Placement:
    parser = argparse.ArgumentParser()
    add_placement(parser)
    parser.add_argument("--max-failures", type=int, default=3)
    return placement_of(parser.parse_args(list(words)))


def test_a_word_that_would_pass_over_another_is_refused() -> None:
    assert placed("--label", "zone=a", "--label", "zone=a", "--label", "rack=1").labels == {"zone": "a", "rack": "1"}
    with pytest.raises(UsageError, match="--label zone is given as a and as b"):
        placed("--label", "zone=a", "--label", "zone=b")
    with pytest.raises(UsageError, match="--resource disk is given as 1"):
        placed("--resource", "disk=1", "--resource", "disk=2")


def test_words_become_what_ray_train_is_asked() -> None:
    placement = placed(
        "--gpu-kind", "nvidia h100", "--label", "zone=eu-1", "--resource", "fast_disk=0.5", "--cpus-per-worker", "8",
        "--spread", "strict",
    )  # fmt: skip
    asked = wanted(4, True, placement)
    assert ScalingConfig(**scaling(asked, placement)) == ScalingConfig(
        num_workers=4, use_gpu=True, resources_per_worker={"CPU": 8.0, "GPU": 1.0, "fast_disk": 0.5},
        placement_strategy="STRICT_SPREAD", accelerator_type="H100", label_selector={"zone": "eu-1"},
    )  # fmt: skip
    plain = placed()
    assert ScalingConfig(**scaling(wanted(2, False, plain), plain)) == ScalingConfig(
        num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1.0}
    )


@pytest.mark.parametrize(
    ("named", "asked", "threads"), [(8, None, 8), (8, 2, 2), (2, 8, 2), (None, 4, 4), (None, None, None)]
)
def test_threads_follow_the_cpus_of_a_worker(named: int | None, asked: int | None, threads: int | None) -> None:
    assert threads_of_worker(Placement(cpus_per_worker=named), asked) == threads


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--gpu-kind", "H100", "--device", "cpu"], "exclude each other"),
        (["--gpu-kind", "8 x H100!"], "is no kind of GPU"),
        (["--label", "zone"], "is not KEY=VALUE"),
        (["--label", "=x"], "is not KEY=VALUE"),
        (["--resource", "GPU=2"], "is not NAME=AMOUNT"),
        (["--resource", "disk=many"], "is not NAME=AMOUNT"),
    ],
)
def test_nodes_that_cannot_be_meant_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        placed(*words)


def test_a_local_ray_judges_at_once_what_cannot_come() -> None:
    here = [Node("laptop", {"CPU": 2.0}, {"CPU": 2.0})]
    check_local(wanted(8, False), here)  # more workers than CPUs are a choice
    for placement, workers in ((Placement(spread="strict"), 2), (Placement(cpus_per_worker=2), 2)):
        check_local(wanted(1, False, placement), here)
        with pytest.raises(UserError, match="this machine has no place for the workers: asked: 2 workers"):
            check_local(wanted(workers, False, placement), here)
