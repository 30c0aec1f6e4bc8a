"""Whole runs on a tiny real shard set: same samples and losses for every topology, through kills, stops and damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.alarms import CollapseError
from cardialign.pretrain.training.checkpoints.files import list_checkpoints
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.data import open_bank, open_data, total_steps
from cardialign.pretrain.training.loop import TrainResult, train
from tests.support.processes import RankError, run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = pytest.mark.processes
STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("tiny") / "shards")


class Witness(NullObserver):
    """Remembers what it is told and asks to stop before a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.checkpoints, self.asked = stop_after, [], 0

    def checkpoint(self, step, path):
        assert (path / "manifest.json").is_file()
        self.checkpoints.append(step)

    def should_stop(self):
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after


def message(kind: type[Exception], *args) -> str:
    try:
        train(*args)
    except kind as error:
        return str(error)
    return "no error"


def one_worker(rank: int, world: int, shards: Path, root: Path) -> tuple[list[TrainResult], str, list]:
    results = [
        train(config_for(shards, zero_stage=stage), root / f"one-{stage}", NullObserver()) for stage in (1, 2, 3)
    ]
    results.append(train(config_for(shards, zero_stage=2, precision="bf16"), root / "one-bf16", NullObserver()))
    collapsing = config_for(shards).model_copy(
        update={"collapse": config_for(shards).collapse.model_copy(update={"patience_steps": 2, "loss_margin": 9.0})}
    )
    witness = Witness()
    results.append(train(config_for(shards, zero_stage=1), root / "one-1", witness))
    results.append(train(config_for(shards, zero_stage=1), root / "moved", NullObserver()))
    return (
        results,
        message(CollapseError, collapsing, root / "collapse", NullObserver()),
        witness.checkpoints,
    )


def two_workers(
    rank: int, world: int, shards: Path, damaged: Path, root: Path
) -> tuple[list[TrainResult], Witness, str]:
    results = [
        train(config_for(shards, zero_stage=stage, micro_batch=3), root / f"two-{stage}", NullObserver())
        for stage in (1, 2, 3)
    ]
    undisturbed = with_dropout(shards)
    results.append(train(undisturbed, root / "undisturbed", NullObserver()))
    asking = Witness(stop_after=2 if rank == 1 else None)  # one rank is asked, both stop
    results.append(train(undisturbed, root / "stopped", asking))
    witness = Witness()
    results.append(train(undisturbed, root / "stopped", witness))
    results.append(train(config_for(shards, zero_stage=1), root / "moved", Witness(stop_after=2)))
    strict = config_for(damaged).model_copy(
        update={"data": config_for(damaged).data.model_copy(update={"max_bad_fraction": 0.0})}
    )
    return results, witness, message(DataError, strict, root / "damaged", NullObserver())


def with_dropout(shards: Path):
    config = config_for(shards, zero_stage=2, micro_batch=4)
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"dropout": 0.1, "drop_path": 0.1})})


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    damaged = root / "damaged-shards"
    shutil.copytree(shards, damaged)
    for tar in damaged.glob("shard-*.tar"):
        raw = bytearray(tar.read_bytes())
        raw[512 + 200] ^= 0xFF  # inside the payload of the shard's first record
        tar.write_bytes(raw)
    two = run_ranks(2, two_workers, shards, damaged, root, init=False, deadline=100)
    one = run_ranks(1, one_worker, shards, root, init=False, deadline=100)
    return root, one[0], two


def losses(root: Path, name: str) -> list[float]:
    return [line["loss"] for line in read_trace(root / name)]


def digests(root: Path, name: str) -> list[str]:
    return [line["digest"] for line in read_trace(root / name)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_and_two_workers_see_the_same_samples_and_the_same_losses(runs, stage):
    root = runs[0]
    assert len(losses(root, "one-1")) == STEPS and len(set(digests(root, "one-1"))) == STEPS
    assert digests(root, f"one-{stage}") == digests(root, f"two-{stage}") == digests(root, "one-1")
    np.testing.assert_allclose(losses(root, f"two-{stage}"), losses(root, "one-1"), rtol=2e-5)
    np.testing.assert_allclose(losses(root, f"one-{stage}"), losses(root, "one-1"), rtol=2e-5)


def test_a_run_moves_from_two_workers_to_one(runs):
    root, (results, _, _), two = runs
    assert two[0][0][6].steps == 2 and results[5].resumed_from == 2 and results[5].steps == STEPS
    assert digests(root, "moved") == digests(root, "one-1")
    np.testing.assert_allclose(losses(root, "moved"), losses(root, "one-1"), rtol=2e-5)
    assert not list((root / "moved" / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("name", ["one-2", "one-3", "two-2", "two-3"])
def test_weights_of_a_checkpoint_fit_the_model_whatever_the_stage(runs, shards, name):
    root = runs[0]
    weights = load_weights(root / name / "checkpoints" / "step-00000006")
    model = create_method(config_for(shards), ShardSet.open(shards).spec)
    model.load_state_dict(weights, strict=True)
    reference = load_weights(root / "one-1" / "checkpoints" / "step-00000006")
    for key, tensor in weights.items():
        # The gradient of a key bias is zero but for rounding (softmax does not see it), and Adam makes steps of it:
        # only those may differ visibly.
        np.testing.assert_allclose(tensor, reference[key], atol=1e-3 if key.endswith("qkv.bias") else 2e-5, err_msg=key)


def test_bf16_follows_full_precision(runs):
    np.testing.assert_allclose(losses(runs[0], "one-bf16"), losses(runs[0], "one-2"), rtol=3e-2)


def test_results_say_what_happened(runs):
    _, (results, _, _), two = runs
    first = results[0]
    assert (first.steps, first.total_steps, first.stopped, first.resumed_from) == (STEPS, STEPS, False, 0)
    assert first.checkpoint.name == "step-00000006" and first.records_per_second > 0 and 0 <= first.data_wait_share <= 1
    assert two[0][0][0].final_loss == two[1][0][0].final_loss


def test_a_finished_run_is_not_trained_again(runs):
    _, (results, _, told), _ = runs
    assert (
        results[4].resumed_from == STEPS
        and results[4].final_loss == results[0].final_loss
        and results[4].digest == results[0].digest
    )
    assert told == []


def test_a_collapsing_run_stops_with_the_reason(runs):
    text = runs[1][1]
    assert text.startswith("step 3:") and "effective negatives" in text and "warm-up" in text


def test_all_ranks_stop_when_one_is_asked_and_the_run_continues_where_it_stopped(runs):
    root, _, two = runs
    for results, witness, _ in two:
        stopped, rest = results[4], results[5]
        assert (stopped.stopped, stopped.steps, stopped.checkpoint.name) == (True, 2, "step-00000002")
        assert (rest.stopped, rest.resumed_from, rest.steps) == (False, 2, STEPS)
        assert witness.checkpoints == [3, 6]
    watched = [line["step"] for line in read_trace(root / "stopped") if "effective_rank" in line]
    assert watched == [2, 4, 6], "figures that cost something are taken every `log_every` steps"
    assert losses(root, "stopped") == losses(root, "undisturbed")
    assert digests(root, "stopped") == digests(root, "undisturbed")


def test_without_an_error_budget_a_damaged_record_stops_all_ranks_naming_record_shard_and_remedy(runs):
    first, second = (text for _, _, text in runs[2])
    assert first == second
    assert "record tiny-" in first and "shard-0000" in first and "rank " in first and "shards verify" in first


def train_and_die(rank: int, world: int, shards: Path, run_dir: Path, die_at: int | None) -> TrainResult:
    def on_step(step: int) -> None:
        if rank == 1 and step == die_at:
            until = time.monotonic() + 30  # what it saved before is committed behind the steps
            while not list_checkpoints(run_dir) or list_checkpoints(run_dir)[-1].step < step - step % 2:
                assert time.monotonic() < until
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

    config = with_dropout(shards)
    config = config.model_copy(update={"training": config.training.model_copy(update={"checkpoint_every": 2})})
    return train(config, run_dir, NullObserver(), on_step=on_step)


def test_after_a_killed_rank_and_a_damaged_checkpoint_the_trace_is_the_same(runs, shards):
    root = runs[0]
    run_dir = root / "killed"
    with pytest.raises(RankError):
        run_ranks(2, train_and_die, shards, run_dir, 5, init=False, deadline=60)
    assert [info.step for info in list_checkpoints(run_dir)] == [2, 4]
    assert len(losses(root, "killed")) >= 4
    (shard,) = (run_dir / "checkpoints" / "step-00000004" / "engine").glob("*pp_rank_1_*optim_states.pt")
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 0x01
    shard.write_bytes(raw)
    results = run_ranks(2, train_and_die, shards, run_dir, None, init=False, deadline=60)
    assert [result.resumed_from for result in results] == [2, 2]
    assert (run_dir / "checkpoints" / "quarantine" / "step-00000004" / "quarantine.txt").read_text().count(
        shard.name
    ) == 1
    assert losses(root, "killed") == losses(root, "undisturbed")
    assert digests(root, "killed") == digests(root, "undisturbed")


def test_a_missing_text_bank_is_an_error_with_its_remedy(shards, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(shards, bare, ignore=shutil.ignore_patterns("text_bank"))
    with pytest.raises(UserError, match=r"no text bank of .*minilm") as caught:
        open_bank(config_for(bare))
    assert "text-bank build" in caught.value.remedy


def test_epochs_become_steps(shards):
    config = config_for(shards, steps=None, epochs=2.5)
    assert total_steps(config, 60) == 12  # ceil(2.5 * 60 / 13)


def test_a_window_in_the_recipe_bounds_the_shards_of_a_batch(shards):
    config = config_for(shards)
    windowed = config.model_copy(update={"data": config.data.model_copy(update={"window": 1})})
    shard_set, selection, order = open_data(windowed)
    assert all(np.unique(shard_set.shard[order.batch(step)]).size <= 2 for step in range(9))
    assert any(
        np.unique(shard_set.shard[open_data(config)[2].batch(step)]).size == 3 for step in range(9)
    )  # of three in all
    assert sorted(np.concatenate([order.batch(step) for step in range(60)])) == sorted(np.repeat(selection.rows, 13))


@pytest.mark.slow
def test_torchrun_entry_stops_at_a_checkpoint_on_sigterm(shards, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(config_for(shards, steps=100_000, checkpoint_every=100_000).resolved()))
    words = [
        sys.executable,
        "-m",
        "cardialign.pretrain",
        "--recipe",
        str(recipe),
        "--run-dir",
        str(tmp_path / "run"),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(read_trace(tmp_path / "run")) < 2:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    result = json.loads(output.splitlines()[-1])
    assert result["stopped"] and Path(result["checkpoint"]).is_dir() and result["steps"] >= 2


@pytest.mark.slow
def test_torchrun_entry_says_what_is_wrong_in_a_recipe(tmp_path):
    words = [
        sys.executable,
        "-m",
        "cardialign.pretrain",
        "--recipe",
        "cardialign-demo",
        "--run-dir",
        str(tmp_path),
        "--set",
        "training.stepz=3",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "training.stepz: unknown key" in done.stderr
