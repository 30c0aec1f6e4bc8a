"""Resuming replays the run: bit for bit at the same world size, to float32 rounding at another.

It never reads damaged or foreign files.
"""

import json
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.training.checkpoints import files as checkpoint
from cardialign.pretrain.training.checkpoints.condition import verify
from cardialign.pretrain.training.checkpoints.convert import convert_world_size
from cardialign.pretrain.training.checkpoints.files import ENGINE, CheckpointError
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_continues
from tests.support import two_towers
from tests.support.processes import run_ranks

STAGES = (0, 1, 2, 3)
ELSEWHERE = (0, 2, 3)  # ZeRO 1 moves to another world size in test_loop
pytestmark = pytest.mark.processes


def legs(rank: int, world: int, jobs: list[tuple[Path, int, int, float]]) -> list[dict]:
    return [two_towers.train_with_checkpoints(folder, stage, upto, 5, dropout) for folder, stage, upto, dropout in jobs]


def first_half(rank: int, world: int, root: Path) -> list[dict]:
    """Undisturbed runs to step 6; runs that stop at 3, with dropout (resumed here) and without (resumed elsewhere)."""
    jobs = [(root / f"whole{s}", s, 6, 0.2) for s in STAGES]
    jobs += [(root / f"half{s}", s, 3, 0.2) for s in STAGES]
    jobs += [(root / f"other{s}", s, 3, 0.0) for s in ELSEWHERE]
    return legs(rank, world, jobs)


def second_half(rank: int, world: int, root: Path) -> tuple[list[dict], str, list[int]]:
    results = legs(rank, world, [(root / f"half{s}", s, 6, 0.2) for s in STAGES])
    return (
        results,
        write_on_a_full_disk(rank, root / "half2"),
        [info.step for info in checkpoint.list_checkpoints(root / "half2")],
    )


def write_on_a_full_disk(rank: int, run_dir: Path) -> str:
    """Continue to step 9 while the operating system refuses larger writes of rank 1; returns the error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        two_towers.train_with_checkpoints(run_dir, 2, 9, 5, 0.2)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "no error"


def elsewhere(rank: int, world: int, root: Path) -> tuple[list[dict], list[dict]]:
    whole = legs(rank, world, [(root / "alone", 2, 6, 0.0)])
    return whole, legs(rank, world, [(root / f"other{s}", s, 6, 0.0) for s in ELSEWHERE])


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return root, run_ranks(2, first_half, root, init=False, deadline=120)


@pytest.fixture(scope="module")
def resumed(halves):
    root, _ = halves
    damaged = root / "damaged"
    shutil.copytree(root / "half2", damaged)
    return run_ranks(2, second_half, root, init=False, deadline=120)


@pytest.mark.slow
def test_resume_at_the_same_world_size_is_bitwise_equal(halves, resumed):
    _, first = halves
    for rank in range(2):
        for stage in STAGES:
            whole, half, rest = first[rank][stage], first[rank][4 + stage], resumed[rank][0][stage]
            assert rest["start"] == 3
            assert half["losses"] + rest["losses"] == whole["losses"], f"ZeRO {stage}"
            assert np.array_equal(rest["weights"], whole["weights"]), f"ZeRO {stage}"


@pytest.mark.slow
def test_a_full_disk_on_one_rank_stops_all_with_the_free_bytes_and_keeps_the_last_checkpoint(resumed):
    for _, message, steps in resumed:
        assert "rank 1" in message and "bytes free" in message and "run again" in message
        assert 6 in steps and 9 not in steps


@pytest.mark.slow
def test_resume_at_another_world_size_continues_the_same_run(halves):
    root, first = halves
    ((whole, rests),) = run_ranks(1, elsewhere, root, init=False, deadline=120)
    for k, stage in enumerate(ELSEWHERE):
        half, rest = first[0][8 + k], rests[k]
        assert rest["start"] == 3
        np.testing.assert_allclose(
            half["losses"] + rest["losses"], whole[0]["losses"], rtol=2e-6, err_msg=f"ZeRO {stage}"
        )
        np.testing.assert_allclose(rest["weights"], whole[0]["weights"], atol=2e-6, err_msg=f"ZeRO {stage}")


@pytest.mark.slow
def test_every_file_of_a_real_checkpoint_is_covered(halves, resumed):
    root, _ = halves
    path = checkpoint.committed_path(root / "damaged", 3)
    names = checkpoint.files_below(path)
    assert {"trainer_state.json", "model.safetensors", "rng/rank-00000.pt", "rng/rank-00001.pt"} < set(names)
    assert sum("optim_states" in name for name in names) == 2
    for name in names:
        whole = (path / name).read_bytes()
        raw = bytearray(whole)
        raw[len(raw) // 3] ^= 0x10
        (path / name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=name):
            verify(path)
        (path / name).write_bytes(whole)
    verify(path)


@pytest.mark.slow
def test_weights_are_readable_without_a_pickle(halves):
    root, first = halves
    weights = load_weights(checkpoint.committed_path(root / "whole3", 6))
    assert np.array_equal(two_towers.flat_weights(weights), first[0][3]["weights"])


def state_of(config: RunConfig) -> TrainerState:
    return TrainerState(5, "d", json.loads(json.dumps(config.resolved())), "selection", 2, 1)


def test_a_changed_run_is_refused_naming_every_key():
    saved = RunConfig()
    now = RunConfig(seed=1, encoder={"size": "tiny"}, training={"epochs": 10, "global_batch": 128})
    with pytest.raises(UserError) as caught:
        check_continues(state_of(saved), now, "other", 1, Path("run/checkpoints/step-00000005"))
    for text in (
        "step-00000005",
        "seed was 0, now 1",
        "encoder.size was 'small', now 'tiny'",
        "training.global_batch was 256, now 128",
    ):
        assert text in str(caught.value)
    assert "selected records differ" in str(caught.value)


def test_harmless_changes_are_accepted():
    now = RunConfig(
        name="again",
        data={"threads": 7},
        collapse={"enabled": False},
        training={"epochs": 10, "log_every": 1, "micro_batch": 3, "checkpoint_every": 9},
    )
    check_continues(state_of(RunConfig()), now, "selection", 1, Path("x"))


def test_where_the_published_batchnorm_takes_its_statistics_from_micro_batches_their_size_may_not_change():
    published = {"name": "resnet1d", "norm": "micro-batch"}
    saved = state_of(RunConfig(encoder=published, training={"epochs": 10, "micro_batch": 8}))
    now = RunConfig(encoder=published, training={"epochs": 10, "micro_batch": 4})
    with pytest.raises(UserError, match=r"training\.micro_batch was 8, now 4"):
        check_continues(saved, now, "selection", 1, Path("x"))
    saved = state_of(RunConfig(encoder={"name": "resnet1d"}, training={"epochs": 10, "micro_batch": 8}))
    now = RunConfig(encoder={"name": "resnet1d"}, training={"epochs": 10, "micro_batch": 4})
    check_continues(saved, now, "selection", 1, Path("x"))


def test_a_checkpoint_from_before_a_key_existed_continues_at_the_keys_default_only():
    mixture = {"mixture": [{"shards": "/a", "weight": 2.0}, {"shards": "/b"}]}
    state = state_of(RunConfig(data=mixture))
    del state.config["encoder"]["attention"], state.config["data"]["mixture"][1]["split"], state.config["collapse"]
    check_continues(state, RunConfig(data=mixture), "selection", 1, Path("x"))
    with pytest.raises(UserError, match=r"encoder\.attention was 'dense', now 'packed'"):
        check_continues(state, RunConfig(data=mixture, encoder={"attention": "packed"}), "selection", 1, Path("x"))
    state.config["encoder"]["gone"] = 3  # a key of another release still decides what a step computed
    with pytest.raises(UserError, match=r"encoder\.gone was 3, now None"):
        check_continues(state, RunConfig(data=mixture), "selection", 1, Path("x"))


@pytest.mark.slow
def test_a_failed_conversion_names_both_world_sizes(tmp_path):
    (tmp_path / "checkpoints" / "step-00000005" / ENGINE).mkdir(parents=True)
    path = checkpoint.committed_path(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"written by 2 workers and could not be converted for 3") as caught:
        convert_world_size(path, tmp_path, 2, state_of(RunConfig()), 3)
    assert "continue with 2 workers" in str(caught.value)
