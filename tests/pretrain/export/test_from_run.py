"""An export holds exactly the weights that were in training, whatever wrote them and wherever the shards are now."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.cluster.commands.evaluate.select import opened
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run.files import CONFIG, INITIALISED
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.checkpoints import files as checkpoints
from cardialign.pretrain.training.checkpoints.files import STATE, CheckpointError, committed, committed_path
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.save import save_checkpoint
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.engine import full_weights, make_engine, plan_batches, start_workers
from cardialign.pretrain.training.initialise import open_start
from cardialign.pretrain.training.loop import train
from tests.support.checkpoints import resealed
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_model
from tests.support.tiny_shards import config_for, make_shards

STAGES = (0, 1, 2, 3)
pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def no_program(monkeypatch):
    """Tracing takes seconds and has tests of its own."""
    monkeypatch.setattr("cardialign.pretrain.export.write.save_program", lambda encoder, path: None)


def run_of(root: Path, world: int, stage: int) -> Path:
    return root / f"world{world}-stage{stage}"


def write_checkpoints(rank: int, world: int, root: Path) -> list[dict[str, torch.Tensor]]:
    """One optimizer step and a committed checkpoint for each ZeRO stage; returns the weights the engine gathers."""
    workers, weights = start_workers(), []
    for stage in STAGES:
        config, model = small_model(training={"steps": 1, "global_batch": 4, "precision": "fp32", "zero_stage": stage})
        engine = make_engine(config, model, plan_batches(4, world, None), workers.device)
        generator = torch.Generator().manual_seed(rank)
        batch = {
            "signal": torch.randn(2, 12, SPEC.samples, generator=generator),
            "lead_mask": torch.ones(2, 12, dtype=torch.bool),
            "text_embedding": torch.randn(2, 384, generator=generator),
        }
        features = engine(batch)
        engine.backward((features["ecg"] * features["text"]).sum() * features["log_scale"].sum())
        engine.step()
        resolved = json.loads(json.dumps(config.resolved()))
        state = TrainerState(1, "d1", resolved, "f1", world, 1, spec=SPEC, shards_fingerprint="shards-1")
        save_checkpoint(engine, run_of(root, world, stage), state, workers, keep=2)
        weights.append(full_weights(engine))
        if rank == 0:
            (run_of(root, world, stage) / CONFIG).write_text(json.dumps(resolved))
    return weights


def alone(rank: int, world: int, root: Path, shards: Path) -> list[dict[str, torch.Tensor]]:
    """The same on one worker, and a whole short run on shards."""
    weights = write_checkpoints(rank, world, root)
    train(config_for(shards, steps=2), root / "run", NullObserver())
    return weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[tuple[int, int], dict[str, torch.Tensor]]]:
    """Folder of the runs, and (world size, ZeRO stage) -> weights."""
    root = tmp_path_factory.mktemp("runs")
    shards = make_shards(root / "shards")
    one = run_ranks(1, alone, root, shards, init=False, deadline=120)[0]
    two = run_ranks(2, write_checkpoints, root, init=False, deadline=120)[0]
    return root, {(w, s): found for w, all_ in ((1, one), (2, two)) for s, found in zip(STAGES, all_, strict=True)}


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the short run beside a copy of its shards, which it finds there."""
    for name in ("run", "shards"):
        shutil.copytree(runs[0] / name, tmp_path / name)
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    config["data"]["shards"] = str(tmp_path / "shards")
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
    return tmp_path / "run"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_the_checkpoint_gives_back_the_weights_of_the_engine(runs, world, stage):
    root, weights = runs
    found = load_weights(committed_path(run_of(root, world, stage), 1))
    initial = small_model()[1].state_dict()
    assert set(found) == set(initial)
    for name in initial:
        assert torch.equal(found[name], weights[world, stage][name]), name
    assert any(not torch.equal(found[name], initial[name]) for name in initial)


@pytest.mark.parametrize(("world", "stage"), [(2, 1), (2, 2), (2, 3), (1, 3)])
def test_the_export_holds_the_weights_of_the_engine(runs, tmp_path, world, stage):
    root, weights = runs
    exported = export_run(run_of(root, world, stage), tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    trained = weights[world, stage]
    for name, tensor in loaded.ecg.state_dict().items():
        assert torch.equal(tensor, trained[f"ecg.{name}"]), name
    for name, tensor in loaded.head.state_dict().items():
        assert torch.equal(tensor, trained[f"text.head.{name}"]), name
    assert exported["digest"] == loaded.digest and loaded.contract.spec == SPEC
    assert loaded.provenance["training"] == {
        "steps": 1,
        "digest": "d1",
        "selection_fingerprint": "f1",
        "shards_fingerprint": "shards-1",
        "world_size": world,
    }


def test_a_damaged_checkpoint_is_neither_read_nor_exported(runs, tmp_path):
    run_dir = shutil.copytree(run_of(runs[0], 2, 2), tmp_path / "run")
    path = committed_path(run_dir, 1)
    victim = next((path / "engine").glob("*model_states.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{victim.name}: content changed"):
        load_weights(path)
    with pytest.raises(UserError, match="has no verified checkpoint"):
        export_run(run_dir)
    assert not (run_dir / "export").exists() and path.is_dir(), "passed over, not moved"


def test_what_holds_no_run_or_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(config\.resolved\.json is missing\)"):
        export_run(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(UserError, match="has no verified checkpoint"):
        export_run(tmp_path)


def weights_digest(folder: Path) -> str:
    return json.loads((folder / "digests.json").read_text())["files"]["model.safetensors"]


def training_of(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())["training"]


def test_a_run_whose_shards_were_renamed_exports_the_same_weights(run):
    export_run(run)
    before = weights_digest(run / "export"), training_of(run / "export")
    (run.parent / "shards").rename(run.parent / "elsewhere")
    export_run(run, overwrite=True)
    assert (weights_digest(run / "export"), training_of(run / "export")) == before
    assert before[1]["shards_fingerprint"]


def forget_the_signals(run_dir: Path, step: int) -> None:
    """Make the checkpoint one of version 1, whose state did not say what the run was trained on."""
    path, temporary = committed_path(run_dir, step), checkpoints.temporary_path(run_dir, step)
    summary = checkpoints.read_manifest(path)["summary"]
    path.rename(temporary)
    values = json.loads((temporary / STATE).read_text())
    del values["spec"], values["shards_fingerprint"]
    (temporary / STATE).write_text(json.dumps(values))
    checkpoints.commit(run_dir, step, checkpoints.seal(temporary, checkpoints.files_below(temporary)), summary)


def test_an_old_checkpoint_asks_the_shards_and_says_what_to_do_when_they_are_gone(run):
    export_run(run, run.parent / "new")
    state = TrainerState.read(committed_path(run, 2))
    forget_the_signals(run, 2)
    assert TrainerState.read(committed_path(run, 2)) == replace(state, spec=None, shards_fingerprint=None)
    export_run(run, run.parent / "old")
    assert weights_digest(run.parent / "old") == weights_digest(run.parent / "new")
    assert training_of(run.parent / "old") == training_of(run.parent / "new")
    (run.parent / "shards").rename(run.parent / "elsewhere")
    with pytest.raises(UserError, match="before checkpoints knew which signals") as caught:
        export_run(run, run.parent / "gone")
    assert str(run / CONFIG) in caught.value.remedy and not (run.parent / "gone").exists()


def test_the_certificate_lists_the_records_of_the_steps_that_were_done_and_no_others(run, tmp_path):
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.export.exposure.certificate import Certificate
    from cardialign.pretrain.export.exposure.hashes import RECORD, Group
    from cardialign.pretrain.export.exposure.salt import salt_of_run
    from cardialign.pretrain.training.data import open_data

    told = export_run(run)
    shard_set, config = ShardSet.open(tmp_path / "shards"), config_for(tmp_path / "shards", steps=2)
    order = open_data(config)[2]
    read = set(np.concatenate([order.batch(0), order.batch(1)]).tolist())
    assert 0 < len(read) < len(shard_set)
    certificate, salt = Certificate.read(run / "export"), salt_of_run(run)
    found = certificate.find([shard_set.key(row) for row in range(len(shard_set))], Group(RECORD), salt) >= 0
    assert set(np.flatnonzero(found).tolist()) == read and certificate.facts["records_are"] == "consumed"
    assert told["exposure"] == certificate.root
    assert all(salt.reveal().encode() not in path.read_bytes() for path in (run / "export").iterdir())
    again = export_run(run, tmp_path / "again")
    assert again["exposure"] == certificate.root, "one run has one certificate"


def test_a_run_whose_digest_is_not_that_of_its_order_lists_what_it_selected(run, tmp_path):
    from cardialign.pretrain.export.exposure.certificate import Certificate

    path = committed_path(run, 2)
    resealed(path, json.dumps({**json.loads((path / STATE).read_text()), "digest": "12" * 16}).encode())
    export_run(run)
    facts = Certificate.read(run / "export").facts
    assert facts["records_are"] == "selected" and facts["lists"]["record"]["rows"] == facts["sets"][0]["selected"]


def test_an_export_says_which_records_it_has_seen_and_keeps_the_facts_when_the_shards_are_away(run, tmp_path):
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.overlap import FOUND, UNKNOWN, find_overlap

    shard_set = ShardSet.open(tmp_path / "shards")
    rows = np.arange(len(shard_set))
    encoder = load_encoder(export_run(run, tmp_path / "with-shards")["path"])
    assert encoder.trained_on is not None and not encoder.trained_on.unknown
    (seen,) = encoder.trained_on.sets
    assert seen.facts["records"] == len(shard_set.select(require_report=True).rows)
    assert seen.facts["fingerprint"] == shard_set.fingerprint
    assert find_overlap(encoder, shard_set, rows).recordings == seen.facts["records"]
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    alone = load_encoder(export_run(run, tmp_path / "without-shards")["path"])
    moved = ShardSet.open(tmp_path / "elsewhere")
    assert find_overlap(alone, moved, rows).status == FOUND
    assert alone.trained_on is not None and "were not there" in alone.trained_on.unknown[0]
    alone.trained_on.sets[0].facts["fingerprint"] = "of another set"
    assert find_overlap(alone, moved, rows).status == UNKNOWN


def test_shards_that_were_built_anew_are_told_when_a_run_on_the_former_ones_is_exported(run, tmp_path, caplog):
    export_run(run, tmp_path / "before")
    assert "trained_on=unknown" not in caplog.text
    shutil.rmtree(tmp_path / "shards")
    make_shards(tmp_path / "shards", silent=3)
    after = load_encoder(export_run(run, tmp_path / "after")["path"])
    assert after.trained_on is not None and after.trained_on.unknown
    assert "trained_on=unknown" in caplog.text and "are not those it was trained on" in caplog.text


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"text": [], "data": 5}'], ids=["no-text", "wrong-types"])
def test_a_configuration_file_that_says_nothing_is_told_and_no_end_of_the_export(run, content):
    (run / CONFIG).write_bytes(content)
    made = export_run(run)
    assert made["step"] == 2 and load_encoder(run / "export").weights_digest()
    assert str(run / CONFIG) in made["differs"][CONFIG][1]


def test_a_start_from_a_checkpoint_that_does_not_say_its_normalisation_is_told(run):
    path = committed(run)[-1][1]
    state = json.loads((path / STATE).read_text())
    del state["config"]["data"]
    resealed(path, json.dumps(state).encode())
    with pytest.raises(CheckpointError, match=r"trainer_state.json does not say data.normalisation"):
        open_start(path)


def test_one_checkpoint_of_several_is_exported_by_its_step_and_each_sound_one_is_a_candidate(run, tmp_path):
    step = committed(run)[-1][0]
    by_step = export_run(run, tmp_path / "by-step", step=step, program=False)
    newest = export_run(run, tmp_path / "newest", program=False)
    assert by_step["step"] == step and by_step["digest"] == newest["digest"]
    with pytest.raises(UserError, match=r"has no checkpoint of step 77(.|\n)*its checkpoints: .*" + str(step)):
        export_run(run, tmp_path / "none", step=77)
    shutil.copytree(committed_path(run, step), committed_path(run, 77))  # a copy under another name is passed over
    found = [(name, encoder.digest) for name, encoder in opened([str(run)], "unused")]
    assert [name for name, _ in found] == [f"{run} step {each}" for each, _ in committed(run) if each != 77]
    assert (f"{run} step {step}", newest["digest"]) in found


@pytest.mark.parametrize("note", ["[", "[]", "{}", '{"origin": null}', '{"origin": "x"}', '{"origin": {"export": 5}}'])
def test_a_start_whose_note_cannot_be_read_is_an_unknown_past_and_no_end_of_the_export(run, tmp_path, note):
    (run / INITIALISED).write_text(note)
    found = load_encoder(export_run(run, tmp_path / "out")["path"]).trained_on
    assert found is not None and len(found.sets) == 1
    assert found.unknown == ("it started from weights that are not named, whose records are not known",)


def test_a_run_that_started_from_one_that_started_from_it_is_exported(run, tmp_path):
    """Each was begun anew from the other's checkpoint: what the first ones saw is no longer written anywhere."""
    (checkpoint,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    (run / INITIALISED).write_text(json.dumps({"origin": {"checkpoint": str(checkpoint)}}))
    found = load_encoder(export_run(run, tmp_path / "out")["path"]).trained_on
    assert found is not None and len(found.sets) == 1 and "no longer there" in found.unknown[0]
