"""A run may start from weights that exist: each tensor is accounted for by name, no encoder is half random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import Method, create_method
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.initialise import initialise, starting_weights
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config, small_model
from tests.support.tiny_shards import config_for, make_shards


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, method = small_model(seed=1)
    out = tmp_path_factory.mktemp("start") / "encoder"
    return export_encoder(config, method.state_dict(), out, training={}, spec=SPEC, program=False)


def fresh(seed: int = 2, **changes: object) -> Method:
    torch.manual_seed(seed)
    return create_method(small_config(**changes), SPEC)


def test_an_exported_encoder_gives_encoder_and_head_and_says_what_stays_fresh(exported: Path) -> None:
    method = fresh()
    before = method.state_dict()["logit_scale.log_scale"].clone()
    result = initialise(method, str(exported))
    weights = load_file(exported / "model.safetensors")
    state = method.state_dict()
    assert all(torch.equal(state[f"ecg.{name}"], tensor) for name, tensor in weights.items())
    assert result.fresh == ("logit_scale.log_scale",) and result.skipped == ()
    assert {name.split(".")[0] for name in result.loaded} == {"ecg", "text"}
    assert torch.equal(state["logit_scale.log_scale"], before)


def test_another_method_takes_the_encoder_and_leaves_the_rest(exported: Path) -> None:
    method = fresh(method={"name": "simclr"})
    result = initialise(method, str(exported))
    assert all(name.startswith("ecg.") for name in result.loaded)
    assert result.fresh and all(name.startswith("projector.") for name in result.fresh)
    assert result.skipped and all(name.startswith("text.head.") for name in result.skipped)


def test_an_encoder_of_another_shape_is_refused_tensor_by_tensor(exported: Path) -> None:
    wider = {**small_config().encoder.model_dump(), "embedding_dim": 12}
    with pytest.raises(UserError, match=r"init_from: 2 tensors of the encoder cannot be taken from") as caught:
        initialise(fresh(encoder=wider), str(exported))
    assert "ecg.projection.weight (12, 128): the source has shape (8, 128)" in caught.value.problem
    assert "init_fresh" in caught.value.remedy
    method = fresh(encoder=wider)
    result = initialise(method, str(exported), fresh=["ecg.projection."])
    assert {"ecg.projection.weight", "ecg.projection.bias"} <= set(result.fresh)
    assert "ecg.projection.weight" in result.skipped


def test_a_prefix_that_fits_nothing_is_a_mistake(exported: Path) -> None:
    with pytest.raises(UserError, match=r"init_fresh: no tensor of the method begins with ecg\.projektion"):
        initialise(fresh(), str(exported), fresh=["ecg.projektion."])


def test_what_is_no_start_or_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory, no checkpoint and no exported encoder"):
        starting_weights(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    save_file({n: t + 1 for n, t in load_file(copy / "model.safetensors").items()}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: content changed"):
        starting_weights(copy)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has no verified checkpoint"):
        starting_weights(tmp_path / "run")


def stages(rank: int, world: int, shards: Path, root: Path) -> None:
    base = config_for(shards, steps=2, lead_dropout=0.0).resolved()
    train(parse_config({**base, "method": {"name": "simclr"}}), root / "first", NullObserver())
    second = {**base, "seed": 8, "optimizer": {"lr": 1e-9}, "init_from": str(root / "first")}
    train(parse_config(second), root / "second", NullObserver())
    train(parse_config({**second, "training": {**base["training"], "steps": 3}}), root / "second", NullObserver())


@pytest.mark.processes
def test_a_second_stage_starts_where_the_first_one_ended_and_only_once(tmp_path: Path) -> None:
    """A learning rate of next to nothing keeps the second stage where it started; a resumed run starts no more."""
    shards = make_shards(tmp_path / "shards")
    run_ranks(1, stages, shards, tmp_path, init=False, deadline=120)
    first, second = (starting_weights(tmp_path / name) for name in ("first", "second"))
    for name, tensor in first.items():
        if name.startswith("ecg."):
            torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=0)
    note = json.loads((tmp_path / "second" / "initialised.json").read_text())
    assert note["source"] == str(tmp_path / "first") and "ecg.projection.weight" in note["loaded"]
    assert any(name.startswith("text.head.") for name in note["fresh"])
    assert any(name.startswith("projector.") for name in note["skipped"])
