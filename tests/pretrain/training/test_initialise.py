"""A run may start from weights that exist: each tensor is accounted for by name, no encoder is half random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.evaluation.missingness.trained_masker import open_masker
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import Method, create_method
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.initialise import Initialised, initialise, open_start
from cardialign.pretrain.training.loop import train
from tests.support.checkpoints import flip, write_checkpoint
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


def begin(built: Method, source: Path, **changes: object) -> Initialised:
    """The method of `small_config(**changes)` started from `source`."""
    config = small_config(**{**changes, "init_from": str(source)})
    return initialise(built, config, open_start(source))


def test_an_exported_encoder_gives_encoder_and_head_and_says_what_stays_fresh(exported: Path) -> None:
    method = fresh()
    before = method.state_dict()["logit_scale.log_scale"].clone()
    result = begin(method, exported)
    weights = load_file(exported / "model.safetensors")
    state = method.state_dict()
    assert all(torch.equal(state[f"ecg.{name}"], tensor) for name, tensor in weights.items())
    assert result.fresh == ("logit_scale.log_scale",) and result.skipped == ()
    assert {name.split(".")[0] for name in result.loaded} == {"ecg", "text"}
    assert torch.equal(state["logit_scale.log_scale"], before)


def test_what_no_export_holds_is_said_with_the_way_to_keep_it(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = {"name": "fg_clep"}
    begin(fresh(method=method), exported, method=method)
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(said) == 1 and "has no logit_bias, logit_scale" in said[0] and "start from the run directory" in said[0]
    caplog.clear()
    begin(fresh(method=method), exported, method=method, init_fresh=["logit_"])
    begin(fresh(method={"name": "simclr"}), exported, method={"name": "simclr"})
    assert not [each for each in caplog.records if each.levelname == "WARNING"], "asked for, or without words"


def test_words_of_another_report_encoder_are_refused(exported: Path) -> None:
    """Equal shapes, other meaning. The ECG encoder alone may be taken; a method without words takes nothing else."""
    other = {"style": "merl"}
    with pytest.raises(UserError, match=r"text\.style is 'merl', the source was trained with 'sentences'") as caught:
        begin(fresh(text=other), exported, text=other)
    assert "init_fresh: [text.]" in caught.value.remedy
    result = begin(fresh(text=other), exported, text=other, init_fresh=["text."])
    assert all(name.startswith("ecg.") for name in result.loaded)
    assert begin(fresh(method={"name": "simclr"}, text=other), exported, method={"name": "simclr"}, text=other).loaded


def test_another_method_takes_the_encoder_and_leaves_the_rest(exported: Path) -> None:
    method = fresh(method={"name": "simclr"})
    result = begin(method, exported, method={"name": "simclr"})
    assert all(name.startswith("ecg.") for name in result.loaded)
    assert result.fresh and all(name.startswith("projector.") for name in result.fresh)
    assert result.skipped and all(name.startswith("text.head.") for name in result.skipped)


def test_an_encoder_of_another_kind_is_refused_key_by_key(exported: Path) -> None:
    wider = {**small_config().encoder.model_dump(), "embedding_dim": 12}
    with pytest.raises(UserError, match=r"encoder\.embedding_dim is 12, the source was trained with 8"):
        begin(fresh(encoder=wider), exported, encoder=wider)
    result = begin(fresh(encoder=wider), exported, encoder=wider, init_fresh=["ecg.projection."])
    assert {"ecg.projection.weight", "ecg.projection.bias"} <= set(result.fresh)
    assert "ecg.projection.weight" in result.skipped


def test_of_another_encoder_altogether_its_name_is_said_and_no_key(exported: Path) -> None:
    other = {"name": "resnet1d", "depth": 18, "width": 4, "embedding_dim": 8}
    said_name = r"encoder\.name is 'resnet1d', the source was trained with 'cardialign'"
    with pytest.raises(UserError, match=said_name) as said:
        begin(fresh(encoder=other), exported, encoder=other)
    assert "None" not in said.value.problem and "init_fresh" not in said.value.remedy


def test_equal_shapes_do_not_make_equal_encoders(exported: Path) -> None:
    """Lead I and V1 exchanged: every weight would fit, and look at the wrong lead."""
    groups = small_config().encoder.model_dump()["lead_groups"]
    exchanged = {n: ["V1" if x == "I" else "I" if x == "V1" else x for x in leads] for n, leads in groups.items()}
    other = {**small_config().encoder.model_dump(), "lead_groups": exchanged}
    with pytest.raises(UserError, match=r"encoder\.lead_groups is .*'V1'"):
        begin(fresh(encoder=other), exported, encoder=other)
    with pytest.raises(UserError, match=r"data\.normalisation is zscore, the source's was none"):
        begin(fresh(), exported, data={"normalisation": "zscore"})
    config = small_config(init_from=str(exported))
    with pytest.raises(UserError, match="the signals have 50 Hz, the source's had 100 Hz"):
        initialise(create_method(config, SignalSpec(50, 4)), config, open_start(exported))
    milder = {**small_config().encoder.model_dump(), "dropout": 0.3, "attention": "packed"}
    assert begin(fresh(encoder=milder), exported, encoder=milder).skipped == ()


def test_a_tensor_that_does_not_fit_is_named(exported: Path) -> None:
    start = open_start(exported)
    start.weights["ecg.projection.weight"] = torch.zeros(3, 3)
    del start.weights["ecg.feature_norm.bias"]
    config = small_config(init_from=str(exported))
    with pytest.raises(UserError, match=r"init_from: 2 tensors of the encoder cannot be taken from") as caught:
        initialise(fresh(), config, start)
    assert "the source has shape (3, 3)" in caught.value.problem and "not in the source" in caught.value.problem


def test_a_prefix_that_fits_nothing_is_a_mistake(exported: Path) -> None:
    with pytest.raises(UserError, match=r"init_fresh: no tensor of the method begins with ecg\.projektion"):
        begin(fresh(), exported, init_fresh=["ecg.projektion."])


def test_what_is_no_start_or_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory, no checkpoint and no exported encoder"):
        open_start(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    save_file({n: t + 1 for n, t in load_file(copy / "model.safetensors").items()}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: content changed"):
        open_start(copy)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has no verified checkpoint"):
        open_start(tmp_path / "run")


@pytest.mark.parametrize("opened", [open_start, lambda run_dir: open_masker(run_dir, SPEC)])
def test_a_start_from_an_earlier_checkpoint_than_the_newest_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, opened: Callable
) -> None:
    write_checkpoint(tmp_path, 1)
    flip(write_checkpoint(tmp_path, 2) / "engine" / "model.pt")
    with pytest.raises(UserError):  # it holds no weights
        opened(tmp_path)
    (told,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "step-00000001, not" in told and "step-00000002: damaged (engine/model.pt" in told


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
    first, second = (open_start(tmp_path / name).weights for name in ("first", "second"))
    for name, tensor in first.items():
        if name.startswith("ecg."):
            torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=0)
    note = json.loads((tmp_path / "second" / "initialised.json").read_text())
    assert note["source"] == str(tmp_path / "first") and note["origin"]["step"] == 2
    assert "ecg.projection.weight" in note["loaded"]
    assert any(name.startswith("text.head.") for name in note["fresh"])
    assert any(name.startswith("projector.") for name in note["skipped"])
