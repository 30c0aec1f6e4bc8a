"""What release 0.1.0 wrote still loads, continues as it did, exports, and embeds."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.config import RunConfig, load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import TrainResult, train
from tests.support.processes import run_ranks
from tests.support.tiny_shards import make_shards

SINCE = (
    "encoder.pooling=attention",
    "encoder.readout=weighted",
    "encoder.beat=false",
    "encoder.rhythm=false",
    "method.statements=null",
    "method.view=null",
)
SINCE_IN = {
    "cardialign-demo": ("training.lead_dropout=0",),
    "cardialign-small": ("text.trainable=partial", "text.train_layers=6"),
    "cardialign-ptb-xl": ("training.lead_dropout=0.1",),
}
RECIPES = ("cardialign-demo", "cardialign-small", "cardialign-ptb-xl")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("version1")
    with tarfile.open(Path(__file__).parent / "stored" / "version1.tar.xz") as archive:
        archive.extractall(root, filter="data")
    make_shards(root / "version1" / "shards")
    return root / "version1"


def config_of(stored: Path) -> RunConfig:
    values = json.loads((stored / "run" / "config.resolved.json").read_text())
    values["data"]["shards"] = str(stored / "shards")
    return parse_config(values)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_resolved_configurations_mean_what_they_meant(stored: Path, name: str) -> None:
    old = yaml.safe_load((stored / "configs" / f"{name}.yaml").read_text())
    assert "objective" in old and "model" in old, "the stored files are of version 1"
    config = load_config(stored / "configs" / f"{name}.yaml")
    assert config == load_config(name, [*SINCE, *SINCE_IN.get(name, ())]), "today's recipe less what it has gained"
    resolved = json.loads((stored / "configs" / f"{name}.json").read_text())
    assert parse_config(resolved) == config
    for section, now in (("objective", config.method), ("model", config.encoder)):
        kept = {key: value for key, value in resolved[section].items() if key != "name"}
        today = now.model_dump(mode="json")
        assert {key: today[key] for key in kept} == kept


def test_old_words_on_the_command_line_still_work() -> None:
    config = load_config("cardialign-demo", ["model.width=32", "objective.low=0.2", "objective.name=diagsim"])
    assert config == load_config("cardialign-demo", ["encoder.width=32", "method.low=0.2"])


def test_a_section_under_both_names_is_refused() -> None:
    with pytest.raises(UsageError, match="has both encoder and its old name model"):
        parse_config({"model": {"size": "tiny"}, "encoder": {"size": "tiny"}})


def go_on(rank: int, world: int, stored: Path, run_dir: Path) -> TrainResult:
    return train(config_of(stored), run_dir, NullObserver())


@pytest.mark.processes
def test_a_checkpoint_continues_as_the_run_that_wrote_it_did(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored / "run", tmp_path / "run")
    before = [line["loss"] for line in read_trace(stored / "run")]
    (result,) = run_ranks(1, go_on, stored, tmp_path / "run", init=False, deadline=90)
    assert (result.resumed_from, result.steps) == (3, 6)
    after = [line["loss"] for line in read_trace(tmp_path / "run")]
    assert after[:3] == before[:3]
    assert after == pytest.approx(before, rel=1e-5), "processors of another kind round otherwise: no bits are compared"


@pytest.mark.slow
def test_a_checkpoint_exports_the_weights_that_the_old_release_exported(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored / "run", tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.resolved.json").read_text())
    values["data"]["shards"] = str(stored / "shards")
    (tmp_path / "run" / "config.resolved.json").write_text(json.dumps(values))
    exported = Path(export_run(tmp_path / "run")["path"])
    for name in ("model.safetensors", "text_head.safetensors"):
        assert (exported / name).read_bytes() == (stored / "export" / name).read_bytes()


def test_an_exported_encoder_of_the_old_release_embeds(stored: Path) -> None:
    encoder = load_encoder(stored / "export")
    signal = np.random.default_rng(0).normal(size=(2, 12, 250)).astype(np.float32) * 0.3
    embedded = encoder.embed(signal, sampling_rate=100)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, rtol=1e-5)
    weights = load_file(stored / "export" / "model.safetensors")
    assert all(bool((encoder.ecg.state_dict()[name] == tensor).all()) for name, tensor in weights.items())
