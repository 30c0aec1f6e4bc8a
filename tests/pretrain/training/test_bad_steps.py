"""Numbers gone bad: all ranks leave the update out or stop together, and what is left makes the step again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training import loop
from cardialign.pretrain.training.alarms import CollapseError
from cardialign.pretrain.training.replay import replay
from tests.support.processes import run_ranks
from tests.support.tiny_shards import RATE, SECONDS, HashingEncoder, TinySource, config_for, make_shards

pytestmark = pytest.mark.processes


class Stops(NullObserver):
    def __init__(self, after: int) -> None:
        self.left = after

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


@contextmanager
def poisoned(rank: int, bad: dict[int, str], only: int) -> Iterator[None]:
    """On rank `only` the method's features are NaN in the steps (1-based) of `bad`, or their gradient alone is."""
    real = loop.create_method

    def hooked(*words: Any) -> Any:
        method = real(*words)
        at = [0]
        plain = method.inputs

        def inputs(batch: Any, *more: Any) -> Any:
            at[0] = batch.step + 1
            return plain(batch, *more)

        def spoil(module: Any, given: Any, output: dict[str, torch.Tensor]) -> Any:
            how = bad.get(at[0]) if rank == only else None
            if how == "forward":
                return {**output, "ecg": output["ecg"] * float("nan")}
            if how == "backward" and output["ecg"].requires_grad:
                output["ecg"].register_hook(lambda gradient: gradient * float("nan"))
            return output

        method.inputs = inputs
        method.register_forward_hook(spoil)
        return method

    loop.create_method = hooked
    try:
        yield
    finally:
        loop.create_method = real


def config_of(shards: Path, **training: Any) -> Any:
    return config_for(shards, **{"checkpoint_every": 1, "keep_checkpoints": 9, "log_every": 1, **training})


def ends(config: Any, run_dir: Path, observer: Any = None) -> str:
    try:
        loop.train(config, run_dir, observer or NullObserver())
    except CollapseError as error:
        return str(error)
    return "no error"


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def unchanged(run_dir: Path, step: int) -> bool:
    before, after = weights(run_dir, step - 1), weights(run_dir, step)
    return all(torch.equal(before[name], after[name]) for name in before)


def note(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / "bad_steps" / f"{step}.json").read_text())


Wanted = list[tuple[int, str]]
ALONE: Wanted = [(1, "forward")]
TOGETHER: Wanted = [(0, "backward"), (2, "backward"), (3, "backward"), (3, "forward")]


def spoilt_runs(rank: int, world: int, shards: Path, root: Path, wanted: Wanted) -> dict[str, Any]:
    found: dict[str, Any] = {}
    last = world - 1
    for stage, how in wanted:
        name = f"{stage}-{how}"
        with poisoned(rank, {3: how}, last):
            found[name] = ends(config_of(shards, zero_stage=stage, bad_steps=1), root / name)
    stage = wanted[-1][0]
    with poisoned(rank, {3: "forward", 5: "backward"}, last):
        found["stops"] = ends(config_of(shards, zero_stage=stage), root / "stops")
        if wanted == ALONE:  # the quick form
            return found
        found["first half"] = ends(config_of(shards, zero_stage=stage, bad_steps=1), root / "halves", Stops(4))
        found["second half"] = ends(config_of(shards, zero_stage=stage, bad_steps=1), root / "halves")
    found["plain"] = ends(config_of(shards, zero_stage=stage), root / "plain")
    norm = read_trace(root / "plain")[0]["grad_norm"]
    limit = config_of(shards, zero_stage=stage, bad_steps=1, gradient_limit=norm / 2)
    found["spike"], found["norm"] = ends(limit, root / "spike"), norm
    return found


def check(found: dict[str, Any], root: Path, wanted: Wanted, world: int) -> None:
    for stage, how in wanted:
        run_dir = root / f"{stage}-{how}"
        assert found[run_dir.name] == "no error"
        assert unchanged(run_dir, 3) and not unchanged(run_dir, 2) and not unchanged(run_dir, 4), run_dir.name
        trace = read_trace(run_dir)
        assert [line["step"] for line in trace if "skipped" in line] == [3] and len(trace) == 6
        assert ("loss" in trace[2]) == (how == "backward") and "grad_norm" not in trace[2]
        said = note(run_dir, 3)
        assert said["reason"] == {"forward": "loss", "backward": "gradient"}[how] and said["skipped"]
        finite = [{each["features_finite"] for each in share["records"]} for share in said["ranks"]]
        assert finite == [{True}] * (world - 1) + [{how == "backward"}]
    assert "step 3: the loss is nan (sample ids digest " in found["stops"] and "cardialign replay" in found["stops"]
    assert (root / "stops" / "bad_steps" / "3.json").is_file() and len(read_trace(root / "stops")) == 2
    if wanted == ALONE:
        return
    assert found["first half"] == "no error", "one is left out"
    assert "step 5: the gradient norm is" in found["second half"] and "1 steps were left out" in found["second half"]
    whole = read_trace(root / f"{wanted[-1][0]}-forward")
    assert [line.get("loss") for line in read_trace(root / "halves")] == [line.get("loss") for line in whole[:4]]
    assert found["spike"].startswith("step 2: the gradient norm is ")
    assert "above training.gradient_limit" in found["spike"]
    assert note(root / "spike", 1)["gradient_norm"] == pytest.approx(found["norm"])


@pytest.mark.slow
def test_one_worker_leaves_a_bad_step_out_or_stops_before_it(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    (found,) = run_ranks(1, spoilt_runs, shards, tmp_path, ALONE, init=False, deadline=100)
    check(found, tmp_path, ALONE, 1)


@pytest.mark.slow
def test_two_workers_agree_when_one_of_them_has_bad_numbers_whatever_the_zero_stage(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    first, second = run_ranks(2, spoilt_runs, shards, tmp_path, TOGETHER, init=False, deadline=400)
    assert first == second, "both end alike"
    check(first, tmp_path, TOGETHER, 2)


class Outlier(TinySource):
    """One record of the set was stored with a gain that makes its samples too large for float32 arithmetic."""

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        if entry.key == "tiny-007":
            record.gain[:] = 1e-25
        return record


def replayed(rank: int, world: int, run_dir: Path, step: int) -> dict[str, Any]:
    found = {"bad": replay(run_dir, step), "good": replay(run_dir, step - 1)}
    try:
        replay(run_dir, 10**6)
    except UserError as error:
        found["late"] = str(error)
    return found


@pytest.mark.slow
def test_a_bad_step_of_two_workers_is_made_again_by_one_and_the_record_and_module_are_named(tmp_path: Path) -> None:
    plan = SetPlan(SignalSpec(RATE, SECONDS), records_per_shard=20)
    build_shards(Outlier(), tmp_path / "shards", plan, workers=1)
    build_text_bank(ShardSet.open(tmp_path / "shards"), HashingEncoder())
    config, run_dir = config_for(tmp_path / "shards", zero_stage=2), tmp_path / "run"
    said = run_ranks(2, stopped_by_itself, config, run_dir, init=False, deadline=100)
    assert said[0] == said[1] and "not finite" not in said[0]
    (path,) = (run_dir / "bad_steps").iterdir()
    step = int(path.stem)
    before = sorted(str(p) for p in run_dir.rglob("*"))
    (found,) = run_ranks(1, replayed, run_dir, step, init=False, deadline=100)
    bad, good = found["bad"], found["good"]
    assert bad["same_batch"] is True and bad["written_down"]["world_size"] == 2 and bad["world_size"] == 1
    assert bad["first"]["where"] == "forward" and "patch_embedding" in bad["first"]["module"]
    (odd,) = [each for each in bad["ranks"][0]["records"] if not each["features_finite"]]
    assert odd["record"] == "tiny-007" and odd["shard"].startswith("shard-") and odd["max_mv"] > 1e20
    if step > 1:
        assert good["first"] is None and good["reason"] is None
        assert good["loss"] == pytest.approx(read_trace(run_dir)[step - 2]["loss"], rel=1e-4)
    assert f"has made {step - 1} steps, not 1000000" in found["late"]
    words = [sys.executable, "-m", "cardialign", "replay", str(run_dir), str(step)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "first not finite: forward: " in done.stdout and "2 workers; the same records" in done.stdout
    assert done.stdout.partition("the oddest first:\n")[2].split()[0] == "tiny-007"
    assert sorted(str(p) for p in run_dir.rglob("*")) == before, "the run is read, not written"


def stopped_by_itself(rank: int, world: int, config: Any, run_dir: Path) -> str:
    return ends(config, run_dir)


def test_a_record_keeps_its_report_to_itself(tmp_path: Path) -> None:
    from cardialign.data_shards.stream.batch import Batch
    from cardialign.pretrain.training.numbers.bad_steps import share_of

    shards = ShardSet.open(make_shards(tmp_path / "shards"))
    rows = np.array([4, 9])
    signal = np.zeros((2, 12, 250), dtype=np.float32)
    signal[1, 3, 5] = np.nan
    signal[0, 0, :2] = -3, 5
    leads = np.ones((2, 12), dtype=bool)
    nothing = np.zeros(2, dtype=np.int64)
    batch = Batch(0, rows, signal, leads, np.full(2, 250), nothing, nothing, nothing, rows)
    share = share_of(0, batch, shards, {"ecg": torch.tensor([[1.0], [float("inf")]])}, 1.5)
    first, second = share["records"]
    assert (first["record"], first["min_mv"], first["max_mv"]) == (shards.key(4), -3.0, 5.0)
    assert first["shard"] == "shard-000000.tar" and first["features_finite"]
    assert (second["record"], second["not_finite"], second["features_finite"]) == (shards.key(9), 1, False)
    assert "inus" not in json.dumps(share)
