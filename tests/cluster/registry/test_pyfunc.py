"""MLflow's own door: a registered version is loaded and served by MLflow, with the library's numbers and words."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from safetensors.numpy import load_file

from cardialign.cluster.registry.pyfunc.door import MLFLOW, through_mlflow
from cardialign.cluster.registry.registry import pull, register
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.doors import check
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run.integrity import OF_MLFLOW, verify_export
from tests.support.mlflow_server import child, wait_for
from tests.support.processes import free_port

REFUSED = 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, exported: Path, empty_store: Path) -> Iterator[str]:
    """A registry with one version, named to MLflow as its users name it."""
    folder = tmp_path_factory.mktemp("pyfunc")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    register(exported, "tiny", uri)
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(store: str) -> Any:
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return mlflow.pyfunc.load_model("models:/tiny@candidate")


@pytest.fixture(scope="module")
def golden(exported: Path) -> dict[str, np.ndarray]:
    return load_file(exported / "golden.safetensors")


def asked(golden: dict[str, np.ndarray], k: int, rate: float) -> tuple[np.ndarray, dict[str, Any]]:
    """One of the ten as a user of MLflow would give it."""
    there = golden["lead_mask"][k]
    signal = (golden["signal"][k : k + 1, there, : golden["valid_samples"][k]] / 1000).astype(np.float32)
    params: dict[str, Any] = {"sampling_rate": rate}
    if not there.all():
        params |= {
            "leads": [lead for lead, recorded in zip(STANDARD_LEADS, there, strict=True) if recorded],
            "allow": ["allow_missing_leads"],
        }
    return signal, params


def test_a_registered_version_gives_the_ten_embeddings_and_is_pulled_as_before(
    model: Any, golden: dict[str, np.ndarray], exported: Path, store: str, tmp_path: Path
) -> None:
    rate = load_encoder(exported).contract.sampling_rate
    for k in range(REFUSED):
        signal, params = asked(golden, k, rate)
        np.testing.assert_allclose(model.predict(signal, params=params), golden["embedding"][k : k + 1], atol=1e-5)
    pulled = pull("tiny@candidate", tmp_path / "encoder", store)
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == sorted(
        path.name for path in exported.iterdir()
    ), "MLflow has written into the store when it loaded, and `pull` takes nothing of it"
    assert pulled["digest"] == model.metadata.metadata["digest"]


def test_who_fetches_the_folder_by_mlflow_alone_has_an_encoder_that_is_verified(store: str, exported: Path) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/tiny@candidate"))
    assert {path.name for path in folder.iterdir()} - {path.name for path in exported.iterdir()} <= set(OF_MLFLOW)
    assert load_encoder(folder).digest == verify_export(exported)


@pytest.mark.parametrize(
    ("change", "params", "told"),
    [
        (1.0, {}, "nothing says the sampling_rate"),
        (1.0, {"sampling_rate": 50.0}, r'trained at 100 Hz; params={"allow": \["resample"\]} converts it'),
        (1000.0, {"sampling_rate": 100.0}, 'spans .* mV, which no ECG does; if these are microvolts give units="uV"'),
        (1e-3, {"sampling_rate": 100.0}, "which no heart does"),
        (np.nan, {"sampling_rate": 100.0}, "NaN or infinite samples in lead I, II"),
        (0.0, {"sampling_rate": 100.0}, "recorded leads are flat: no ECG"),
        (1.0, {"sampling_rate": 100.0, "leads": ["I", "II"]}, "signal has 12 leads but 2 names were given"),
        (1.0, {"sampling_rate": 100.0, "allow": ["anything"]}, "allow has anything; give some of resample, crop"),
    ],
)
def test_what_the_library_refuses_is_a_bad_request_in_its_words(
    model: Any, golden: dict[str, np.ndarray], change: float, params: dict[str, Any], told: str
) -> None:
    from mlflow.exceptions import MlflowException

    signal = asked(golden, 0, 100)[0] * np.float32(change)
    with pytest.raises(MlflowException, match=told) as raised:
        model.predict(signal, params=params)
    assert raised.value.get_http_status_code() == 400


def test_a_longer_ecg_and_one_of_fewer_leads_are_refused_until_it_is_said(
    model: Any, golden: dict[str, np.ndarray]
) -> None:
    from mlflow.exceptions import MlflowException

    signal, params = asked(golden, 0, 100)
    twice = np.concatenate([signal, signal], axis=2)
    with pytest.raises(MlflowException, match=r'params={"allow": \["crop"\]}'):
        model.predict(twice, params=params)
    found = model.predict(twice, params={**params, "allow": ["crop"]})
    np.testing.assert_allclose(found, golden["embedding"][:1], atol=1e-5)
    with pytest.raises(MlflowException, match="samples are masked out"):
        model.predict(np.ma.masked_array(signal, mask=True), params=params)
    with pytest.raises(MlflowException, match="missing here: III, aVR"):
        model.predict(signal[:, :2], params={**params, "leads": ["I", "II"]})


def test_what_stands_beside_the_encoder_is_true_and_brings_no_code(store: str, exported: Path) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/tiny@candidate"))
    written = yaml.safe_load((folder / "MLmodel").read_text())
    flavour = written["flavors"]["python_function"]
    assert list(written["flavors"]) == ["python_function"] and flavour["loader_module"] == "cardialign.mlflow"
    assert not {"code", "model_code_path", "python_model", "cloudpickle_version"} & set(flavour)
    lines = (folder / "requirements.txt").read_text().splitlines()
    for each in map(Requirement, lines):
        assert len(each.specifier) == 1 and importlib.metadata.version(each.name) in each.specifier
    named = {Requirement(line).name for line in lines}
    assert {"cardialign", "torch", "mlflow"} <= named and not {"ray", "deepspeed"} & named
    for name in ("MLmodel", "requirements.txt", "python_env.yaml"):
        assert "://" not in (folder / name).read_text() and "conda" not in (folder / name).read_text()
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert np.shape(example["inputs"])[1] == 12 and example["params"]["sampling_rate"] == 100


def test_weights_that_changed_in_the_store_are_not_loaded(
    exported: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    register(exported, "changed", uri)
    weights = next((tmp_path / "mlartifacts").rglob("model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors: content changed"):
        mlflow.pyfunc.load_model(weights.parent.as_uri())


def test_the_check_of_an_export_goes_through_mlflow_too(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "DOORS", {})
    found = {each.name: each for each in check.check_doors(exported, {MLFLOW: through_mlflow})[1]}[MLFLOW]
    assert (found.closed, found.wrong, found.records) == ("", "", 9) and float(found.difference or 0) < 1e-6


@pytest.mark.slow  # a server imports torch and MLflow
@pytest.mark.processes
def test_it_is_served_by_a_process_that_has_neither_ray_nor_deepspeed(
    store: str, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for name in ("ray", "deepspeed", "transformers"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ImportError('{name} is not here')")
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny@candidate"]
    words += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'absent'}:{Path(__file__).parents[3]}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow looks for uvicorn there
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }

    def answer(signal: np.ndarray, params: dict[str, Any]) -> Any:
        body = json.dumps({"inputs": signal.tolist(), "params": params}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=60))

    with child(words, tmp_path / "serve.log", environment) as process:
        wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "serve.log")
        for k in (0, 6):
            given = asked(golden, k, 100)
            np.testing.assert_allclose(answer(*given)["predictions"], golden["embedding"][k : k + 1], atol=1e-5)
        with pytest.raises(urllib.error.HTTPError) as raised:
            answer(asked(golden, 0, 100)[0] * 1000, {"sampling_rate": 100})
        assert raised.value.code == 400 and "if these are microvolts" in raised.value.read().decode()
