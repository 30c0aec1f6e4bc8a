"""Real runs that go on: refused, extended, beside strange files, over a full disk. One process, few steps."""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.__main__ import main
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.run.files import CONFIG, EARLIER, MEMORY, METRICS
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints import load
from cardialign.pretrain.training.checkpoints.files import CheckpointError, committed_path
from cardialign.pretrain.training.checkpoints.judge import Resume
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.loop import train
from tests.support.checkpoints import flip, snapshot
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = pytest.mark.processes
PEAK, FLOOR = 3e-3, 3e-5


class Stop(NullObserver):
    def __init__(self, after: int) -> None:
        self.left = after

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def attempt(
    config: RunConfig, run_dir: Path, resume: Resume = "same", on_step: Callable[[int], None] | None = None
) -> str:
    try:
        train(config, run_dir, NullObserver(), resume=resume, on_step=on_step)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def with_limit(largest: int, config: RunConfig, run_dir: Path, from_step: int) -> str:
    """Train while the operating system refuses files beyond `largest` bytes, from the end of a step on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step(step: int) -> None:
        if step == from_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))

    on_step(0)
    try:
        return attempt(config, run_dir, on_step=on_step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def copied(root: Path, name: str) -> Path:
    return Path(shutil.copytree(root / "base", root / name))


def continued(rank: int, world: int, shards: Path, root: Path) -> dict[str, Any]:
    """Everything that needs an engine, in one process."""
    found: dict[str, Any] = {}
    config, longer = config_for(shards), config_for(shards, steps=12)
    train(config, root / "base", Stop(4))  # at step 4 of 6, checkpoints at 3 and 4
    refused = copied(root, "refused")
    flip(committed_path(refused, 4) / "model.safetensors")
    before = snapshot(refused)
    other = config.model_copy(update={"data": config.data.model_copy(update={"normalisation": "minmax"})})
    found["refused"] = [attempt(other, refused), attempt(longer, refused)]
    found["unchanged"] = snapshot(refused) == before
    train(longer, copied(root, "extended"), NullObserver(), resume="extend")
    train(longer, copied(root, "halves"), Stop(3), resume="extend")
    train(longer, root / "halves", NullObserver())
    whole, seen = copied(root, "whole"), [(root / "base" / MEMORY).exists()]
    train(config, whole, NullObserver(), on_step=lambda step: seen.append((whole / MEMORY).exists()))
    found["memory"] = [*seen, (whole / MEMORY).exists()]
    strange = copied(root, "strange")
    engine = committed_path(strange, 4) / "engine"
    for name in (
        "mp_rank_01_model_states.pt",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt",
        ".nfs00000000000000a1",
        "core",
    ):
        (engine / name).write_bytes(b"not a checkpoint")
    train(config, strange, NullObserver())
    full = copied(root, "full")
    found["full"] = [with_limit(2000, config, full, 5), with_limit(100, config, full, 0)]
    found["kept"] = sorted(p.name for p in (full / "checkpoints").glob("[!.]*"))
    found["config"] = (full / CONFIG).read_bytes() == (root / "base" / CONFIG).read_bytes()
    train(config, full, NullObserver())
    recipe = root / "recipe.yaml"
    recipe.write_text(json.dumps(longer.resolved()))
    over = copied(root, "over")
    flip(committed_path(over, 4) / "trainer_state.json")
    flip(committed_path(over, 3) / "trainer_state.json")
    found["stopped"] = attempt(longer, over)
    found["door"] = main(["--recipe", str(recipe), "--run-dir", str(over), "--start-over"])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("continued")
    shards = make_shards(root / "shards")
    return root, run_ranks(1, continued, shards, root, init=False, deadline=200)[0]


def test_a_refused_start_changes_nothing(runs):
    said = runs[1]["refused"]
    assert "data.normalisation was" in said[0] and "--extend" in said[1]
    assert runs[1]["unchanged"]


def test_an_extended_run_goes_on_from_its_rate_to_the_floor_and_its_past_is_that_of_the_old_one(runs):
    root = runs[0]
    base, extended = read_trace(root / "base"), read_trace(root / "extended")
    assert [line["loss"] for line in extended[:4]] == [line["loss"] for line in base]
    # ramp of 1 of 6 steps; step index 3 has progress 3/5 of the old cosine; then 8 steps to the floor
    last = FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * 3 / 5))
    assert extended[3]["lr"] == pytest.approx(last)
    for index in range(4, 12):
        by_hand = FLOOR + (last - FLOOR) * 0.5 * (1 + math.cos(math.pi * (index - 3) / 8))
        assert extended[index]["lr"] == pytest.approx(by_hand)
    assert len(extended) == 12


def test_an_extended_run_that_is_continued_again_is_the_same_run_bit_for_bit(runs):
    root = runs[0]
    for key in ("loss", "lr", "digest", "grad_norm"):
        assert [line[key] for line in read_trace(root / "halves")] == [
            line[key] for line in read_trace(root / "extended")
        ]


def test_checkpoint_configuration_file_and_export_of_an_extended_run_say_the_same(runs, monkeypatch):
    monkeypatch.setattr("cardialign.pretrain.export.write.save_program", lambda encoder, path: None)
    for name in ("extended", "halves"):
        run_dir = runs[0] / name
        state = TrainerState.read(committed_path(run_dir, 12))
        assert state.plan == ((0, 6), (4, 12)) and state.config["training"]["steps"] == 12
        assert json.loads((run_dir / CONFIG).read_text())["training"]["steps"] == 12
        exported = export_run(run_dir)
        assert exported["step"] == 12 and exported["differs"] == {} and exported["passed_over"] == []
        folder = run_dir / "export"
        assert json.loads((folder / "config.json").read_text())["training"]["steps"] == 12
        assert json.loads((folder / "provenance.json").read_text())["training"]["plan"] == [[0, 6], [4, 12]]


def test_deepspeed_sees_no_file_that_the_checkpoint_does_not_list(runs):
    root = runs[0]
    assert [line["loss"] for line in read_trace(root / "strange")] == [
        line["loss"] for line in read_trace(root / "whole")
    ]
    assert (committed_path(root / "strange", 4) / "engine" / "core").is_file(), "what is somebody's stays"
    assert not list((root / "strange" / "checkpoints").glob(".tmp-*"))


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on_afterwards_with_the_same_trace(runs):
    root, found = runs
    said, configuration = found["full"]
    assert "checkpoint not written" in said and "File too large" in said and "free space" in said
    assert "cannot be written: File too large" in configuration and "free space" in configuration
    assert found["kept"] == ["step-00000003", "step-00000004"] and found["config"], "what was there stays as it was"
    assert [line["loss"] for line in read_trace(root / "full")] == [line["loss"] for line in read_trace(root / "whole")]


def test_the_memory_of_an_earlier_start_is_not_taken_for_that_of_the_steps_that_follow(runs):
    before, *during, after = runs[1]["memory"]
    assert (before, during, after) == (True, [False, False], True)


def test_starting_over_by_the_plain_door_begins_at_step_0_and_keeps_the_old_run(runs):
    root, found = runs
    assert "no checkpoint of it can be continued" in found["stopped"] and found["door"] == 0
    assert len(read_trace(root / "over")) == 12 and committed_path(root / "over", 12).is_dir()
    old = root / "over" / EARLIER / "1"
    assert (old / METRICS).read_bytes() == (root / "base" / METRICS).read_bytes()
    assert committed_path(old, 4).is_dir()


def test_another_micro_batch_is_said_in_one_line(runs, caplog):
    from cardialign.pretrain.training.checkpoints.judge import judge_start

    config = config_for(runs[0] / "shards", micro_batch=5)
    with caplog.at_level(logging.WARNING):
        judge_start(config, runs[0] / "whole")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "training.micro_batch was=None now=5" in line and "no longer bit for bit" in line
    caplog.clear()
    judge_start(config, runs[0] / "whole", quick=True)
    assert caplog.messages == [], "a second look by the same command says nothing twice"


def test_export_takes_the_configuration_of_the_checkpoint_and_says_what_the_file_beside_it_says_otherwise(
    runs, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("cardialign.pretrain.export.write.save_program", lambda encoder, path: None)
    run_dir = Path(shutil.copytree(runs[0] / "whole", tmp_path / "run"))
    values = json.loads((run_dir / CONFIG).read_text())
    trained = values["data"]["normalisation"]
    (run_dir / CONFIG).write_text(json.dumps(values | {"data": values["data"] | {"normalisation": "minmax"}}))
    exported = export_run(run_dir)
    assert exported["differs"] == {"data.normalisation": [trained, "minmax"]}
    assert "data.normalisation" in caplog.text
    contract = json.loads((run_dir / "export" / "signal_contract.json").read_text())
    assert contract["normalisation"] == trained
    for text in ("[" * 100_000, "{nope", "[]"):
        (run_dir / CONFIG).write_text(text)
        assert export_run(run_dir, overwrite=True)["digest"] == exported["digest"]


def test_export_says_which_checkpoint_it_passed_over_and_leaves_what_is_beside_an_encoder(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("cardialign.pretrain.export.write.save_program", lambda encoder, path: None)
    run_dir = Path(shutil.copytree(runs[0] / "whole", tmp_path / "run"))
    flip(committed_path(run_dir, 6) / "model.safetensors")
    exported = export_run(run_dir)
    assert exported["step"] == 4 and "step-00000006: damaged" in exported["passed_over"][0]
    (run_dir / "export" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        export_run(run_dir, overwrite=True)
    assert (run_dir / "export" / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in run_dir.iterdir() if p.name.startswith(".")) == []


def test_weights_that_change_after_they_were_verified_are_not_read(runs, tmp_path, monkeypatch):
    path = committed_path(Path(shutil.copytree(runs[0] / "whole", tmp_path / "run")), 6)
    verify = load.verify

    def verified_then_swapped(checkpoint: Path) -> object:
        found = verify(checkpoint)
        flip(path / "model.safetensors")
        return found

    monkeypatch.setattr(load, "verify", verified_then_swapped)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load.load_weights(path)
