"""Whatever ZeRO stage and world size wrote a checkpoint, the exported encoder holds exactly the weights that were in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.export.write import checkpoint_weights, export_from_checkpoint, load_encoder
from cardialign.pretrain.training.checkpoints import state as resume
from cardialign.pretrain.training.engine import full_weights, make_engine, plan_batches, start_workers
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_model

STAGES = (0, 2, 3)
pytestmark = pytest.mark.processes


def write_checkpoints(rank: int, world: int, root: Path) -> list[dict[str, torch.Tensor]]:
    """One optimizer step and a committed checkpoint for each ZeRO stage; returns the weights as the engine itself gathers them."""
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
        state = resume.TrainerState(1, "d1", json.loads(json.dumps(config.resolved())), "f1", world, 1)
        resume.save_checkpoint(engine, root / f"stage{stage}", state, workers, keep=2)
        weights.append(full_weights(engine))
    return weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return root, dict(zip(STAGES, run_ranks(2, write_checkpoints, root, init=False, deadline=120)[0], strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_the_checkpoint_gives_back_the_weights_of_the_engine(runs, stage):
    root, weights = runs
    found = checkpoint_weights(root / f"stage{stage}" / "checkpoints" / "step-00000001")
    initial = small_model()[1].state_dict()
    assert set(found) == set(initial)
    for name in initial:
        assert torch.equal(found[name], weights[stage][name]), name
    assert any(not torch.equal(found[name], initial[name]) for name in initial)


def test_a_run_directory_exports_its_newest_sound_checkpoint(runs, tmp_path):
    root, weights = runs
    loaded = load_encoder(export_from_checkpoint(root / "stage3", tmp_path / "encoder", spec=SPEC, program=False))
    assert torch.equal(loaded.ecg.projection.weight, weights[3]["ecg.projection.weight"])
    training = loaded.provenance["training"]
    assert (training["steps"], training["sample_digest"], training["selection_fingerprint"]) == (1, "d1", "f1")


def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path):
    copy = shutil.copytree(runs[0] / "stage2" / "checkpoints" / "step-00000001", tmp_path / "checkpoint")
    victim = next((copy / "engine").glob("*model_states.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=f"{victim.name}: content changed"):
        export_from_checkpoint(copy, tmp_path / "encoder", spec=SPEC)
    assert not (tmp_path / "encoder").exists()


def test_without_spec_and_without_shards_the_remedy_is_named(runs, tmp_path):
    with pytest.raises(UserError, match=r"sampling rate and length are unknown(.|\n)*give spec="):
        export_from_checkpoint(runs[0] / "stage0", tmp_path / "encoder")


def test_a_run_without_checkpoints_is_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has no sound checkpoint"):
        export_from_checkpoint(tmp_path / "run", tmp_path / "encoder", spec=SPEC)
