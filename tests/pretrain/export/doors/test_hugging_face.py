"""transformers' door: `AutoModel` opens an exported folder, offline, without code of the folder; what comes out and
what is refused is the library's."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModel

import cardialign.transformers
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import DIGESTS, verify_export, write_digests
from tests.support.small_encoder import SPEC, small_model

REFUSED = 9


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("hub") / "encoder"
    return export_encoder(config, model.state_dict(), out, training={}, spec=SPEC, program=False)


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address is looked up or connected to, whatever the environment says of being offline."""

    def refused(*_: Any) -> None:
        raise AssertionError("it asked the network")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def ecgs(folder: Path, rows: slice = slice(0, 6)) -> tuple[torch.Tensor, np.ndarray]:
    stored = load_file(folder / "golden.safetensors")
    return torch.from_numpy(stored["signal"][rows] / 1000.0).float(), stored["embedding"][rows]


def test_auto_model_opens_the_folder_and_gives_its_embeddings(exported: Path, unplugged: None) -> None:
    model = AutoModel.from_pretrained(exported)
    signal, wanted = ecgs(exported)
    found = model(signal, sampling_rate=100)
    np.testing.assert_allclose(found.pooler_output.detach().numpy(), wanted, atol=1e-5)
    assert model.digest == verify_export(exported) and not model.training and found.last_hidden_state is None
    assert model(signal.numpy(), sampling_rate=100, return_tokens=True).last_hidden_state.shape[0] == 6
    found.pooler_output[:, 0].sum().backward()
    assert all(each.grad is not None for each in model.parameters()), "it can be trained further"


def test_its_config_is_that_of_the_run_and_the_library_opens_the_folder_as_before(exported: Path) -> None:
    values = json.loads((exported / "config.json").read_text())
    config = AutoConfig.from_pretrained(exported)
    assert isinstance(config, cardialign.transformers.CardialignConfig)
    assert (values["model_type"], config.encoder) == ("cardialign", values["encoder"])
    assert parse_config(values).resolved().keys() == open_encoder(exported).config.resolved().keys()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="model_type"):
        parse_config({**values, "model_type": "bert"})


def test_save_pretrained_writes_the_same_export_and_no_other_one(exported: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(exported)
    model.save_pretrained(tmp_path / "again")
    assert verify_export(tmp_path / "again") == verify_export(exported)
    assert AutoModel.from_pretrained(tmp_path / "again").digest == model.digest
    with pytest.raises(UserError, match="exists already"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(UsageError, match="nothing is sent"):
        model.save_pretrained(tmp_path / "sent", push_to_hub=True)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(UserError, match="not those that were loaded"):
        model.save_pretrained(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_a_version_on_a_hub_is_fetched_by_the_names_of_an_export(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, asked = tmp_path / "snapshot", {}
    snapshot.mkdir()
    for path in exported.iterdir():  # as a cache of the hub holds it
        (snapshot / path.name).symlink_to(path)

    def fetched(name: str, **given: Any) -> str:
        asked.update(given, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    model = cardialign.transformers.CardialignModel.from_pretrained("heart/encoder", revision="v1", token=None)
    assert model.digest == verify_export(exported)
    assert (asked["name"], asked["revision"]) == ("heart/encoder", "v1") and "token" not in asked
    assert "model.safetensors" in asked["allow_patterns"] and not [p for p in asked["allow_patterns"] if "*" in p]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing says the sampling_rate"),
        ({"sampling_rate": 50}, "resample=True"),
        ({"sampling_rate": 100, "leads": ["I", "II"]}, "signal has 12 leads but 2 names"),
        ({"sampling_rate": 100, "lead_mask": np.zeros(12, dtype=bool)}, "no recorded lead"),
        ({"sampling_rate": 100, "units": "uV"}, "which no heart does"),
    ],
)
def test_it_refuses_what_the_library_refuses(exported: Path, given: dict[str, Any], told: str) -> None:
    model = AutoModel.from_pretrained(exported)
    with pytest.raises(UserError, match=told):
        model(ecgs(exported)[0], **given)
    with pytest.raises(UserError, match="NaN or infinite samples in lead II"):
        refused = ecgs(exported, slice(REFUSED, REFUSED + 1))[0]
        refused[refused < -32] = torch.nan
        model(refused, sampling_rate=100)


def test_a_changed_file_and_an_argument_that_would_change_the_numbers_are_refused(
    exported: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: content changed"):
        AutoModel.from_pretrained(copy)
    with pytest.raises(UsageError, match="has no dtype"):
        AutoModel.from_pretrained(exported, dtype=torch.float16)
    assert AutoModel.from_pretrained(exported, dtype="auto", trust_remote_code=False).digest == verify_export(exported)


def test_an_export_of_before_names_no_type_and_is_opened_by_our_own_class(exported: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(exported, tmp_path / "old"))
    values = json.loads((old / "config.json").read_text())
    del values["model_type"]
    (old / "config.json").write_text(json.dumps(values))
    (old / DIGESTS).unlink()
    write_digests(old)
    signal, wanted = ecgs(exported)
    found = cardialign.transformers.CardialignModel.from_pretrained(old)(signal, sampling_rate=100)
    np.testing.assert_allclose(found.pooler_output.detach().numpy(), wanted, atol=1e-5)
