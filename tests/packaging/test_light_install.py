"""`pip install cardialign` loads encoders with few packages; what another command or name needs is said with its extra.

The environments are real ones: the built wheel, and links to what it asks for under some extras, nothing else.
"""

from __future__ import annotations

import json
import pickle
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from safetensors.numpy import load_file

from cardialign.cluster.registry.pyfunc.mlmodel import write_mlmodel
from cardialign.data_shards.extras import BROUGHT_BY, EXTRAS, MissingPackageError, missing, needed_by
from cardialign.pretrain.export.write import export_encoder
from tests.packaging.elsewhere import ROOT, Environment, build_wheel, copied_sources
from tests.packaging.light import asked_by, closure, light_environment
from tests.support.small_encoder import SPEC, small_model

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(lines: list[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in lines}


def test_every_package_of_an_extra_is_told_with_the_extra_that_brings_it() -> None:
    listed, found = PROJECT["optional-dependencies"], packages_distributions()
    for extra, modules in EXTRAS.items():
        brings = named(listed[extra]) - {"cardialign"}
        homes = [{re.sub(r"[-_.]+", "-", name).lower() for name in found.get(each, [each])} for each in modules]
        assert all(home & brings for home in homes) and set().union(*homes) >= brings, extra
    assert named(PROJECT["dependencies"]) == {"numpy", "torch", "safetensors", "pydantic"}


def test_the_extra_train_brings_what_every_run_needs() -> None:
    own = [*PROJECT["dependencies"]]
    for extra, lines in PROJECT["optional-dependencies"].items():
        own += [f'{line.replace(";", " ; (")}{") and" if ";" in line else " ;"} extra == "{extra}"' for line in lines]
    brought = closure(own, ("train",))
    assert {"ray", "deepspeed", "mlflow", "transformers", "scikit-learn", "pyarrow", "pcodec", "wfdb"} <= brought
    assert not {"ray", "deepspeed", "mlflow", "pyarrow", "scipy", "pyyaml", "transformers"} & closure(own)


def test_a_missing_package_is_told_with_the_way_to_get_it_and_nothing_else_is_touched() -> None:
    with pytest.raises(ImportError, match=r"cardialign\.open_shards needs pyarrow") as raised:
        with needed_by("cardialign.open_shards", "shards"):
            raise ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet")
    told = raised.value
    assert isinstance(told, MissingPackageError) and told.remedy == 'pip install "cardialign[shards]"'
    assert pickle.loads(pickle.dumps(told)).remedy == told.remedy
    with pytest.raises(ModuleNotFoundError, match=r"cardialign\.nowhere"), needed_by("x"):
        raise ModuleNotFoundError("No module named 'cardialign.nowhere'", name="cardialign.nowhere")
    assert missing(ImportError("broken", name="scipy"), "x") is None, "it is there, and broken: another sentence"
    assert missing(ModuleNotFoundError("", name="_sqlite3"), "x", "train") is None, "no package brings it"
    theirs = missing(ModuleNotFoundError("", name="requests"), "cardialign registry list", "cluster")
    assert theirs is not None and theirs.remedy == 'pip install "cardialign[cluster]"', "MLflow asks for it"
    own = missing(ModuleNotFoundError("", name="onnxruntime"), "encoder.onnx")
    assert own is not None and own.remedy == 'pip install "cardialign[onnx]"'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    return build_wheel(copied_sources(folder / "checkout"), folder / "wheel")


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return light_environment(wheel, tmp_path_factory.mktemp("light") / "venv")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    folder = tmp_path_factory.mktemp("light") / "export"
    return export_encoder(config, model.state_dict(), folder, training={}, spec=SPEC, program=False)


LIBRARY = """
import sys, numpy, cardialign
from safetensors.numpy import load_file
stored = load_file(f"{sys.argv[1]}/golden.safetensors")
encoder = cardialign.load_encoder(sys.argv[1])
numpy.save(sys.argv[2], encoder.embed(stored["signal"][:6] / 1000.0, sampling_rate=100))
try:
    encoder.embed(stored["signal"][0] / 1000.0, sampling_rate=50, resample=True)
except cardialign.UserError as error:
    assert 'pip install "cardialign[shards]"' in error.remedy, error
else:
    raise SystemExit("scipy is here")
"""


@pytest.mark.slow  # an environment of its own, and a process that imports torch
def test_the_wheel_alone_brings_four_packages_and_loads_an_encoder(
    wheel: Path, light: Environment, exported: Path, tmp_path: Path
) -> None:
    direct = {Requirement(each) for each in asked_by(wheel) if "extra ==" not in each}
    assert {each.name for each in direct} == {"numpy", "torch", "safetensors", "pydantic"}
    light.run("python", "-c", LIBRARY, exported, tmp_path / "found.npy", cwd=tmp_path)
    wanted = load_file(exported / "golden.safetensors")["embedding"][:6]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-5)


COMMANDS = {
    "pretrain --recipe cardialign-tiny --shards x --run-dir y": "train",
    "shards build ptb-xl --root x --out y": "shards",
    "shards inspect x": "shards",
    "shards build --help": "shards",
    "text-bank build x": "train",
    "recipes list": "train",
    "export x": "train",
    "evaluate zero-shot --encoder x --shards x --prompts x": "train",
    "demo --out x": "train",
    "embed x --encoder y": "shards",
    "registry list --tracking-uri http://127.0.0.1:9": "cluster",
}
"""Words -> the extra that their refusal names."""
NAMES = {"open_shards": "shards", "draw_ecg": "shards", "load_recipe": "train", "evaluate": "train"}
MODULES = {"sklearn": "sklearn", "transformers": "transformers", "webdataset": "shards"}
REFUSALS = """
import contextlib, importlib, io, json, sys
import cardialign
from cardialign.cluster.main import main
told = {}
commands, names, modules = json.loads(sys.argv[1])
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words.split())
    told[words] = [code, said.getvalue()]
for name in names:
    try:
        getattr(cardialign, name)("cardialign-tiny")
    except cardialign.UserError as error:
        told[name] = [1, str(error)]
for name in modules:
    try:
        importlib.import_module(f"cardialign.{name}")
    except ImportError as error:
        told[name] = [1, str(error)]
import cardialign.mlflow
print(json.dumps(told))
"""


@pytest.mark.slow  # the same environment; the quick form is the table of packages and extras above
def test_whatever_needs_more_says_which_extra_and_gives_no_traceback(light: Environment, tmp_path: Path) -> None:
    asked = json.dumps([[*COMMANDS], [*NAMES], [*MODULES]])
    told = json.loads(light.run("python", "-c", REFUSALS, asked, cwd=tmp_path).splitlines()[-1])
    for words, extra in {**COMMANDS, **NAMES, **MODULES}.items():
        code, said = told[words]
        assert code == 1 and f'pip install "cardialign[{extra}]"' in said, (words, said)
        assert "Traceback" not in said and "which is not installed" in said


@pytest.fixture(scope="module")
def beside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The light wheel with the packages of the doors, and somebody else's `kernels` (Hugging Face's has that name)."""
    made = light_environment(wheel, tmp_path_factory.mktemp("beside") / "venv", ("sklearn", "transformers", "mlflow"))
    other = next((made.folder / "lib").glob("python*/site-packages")) / "kernels"
    other.mkdir()
    (other / "__init__.py").write_text("WHOSE = 'not ours'\n")
    return made


DOORS = """
import os, sys
import numpy, pandas, pydantic, sklearn.base, torch  # once: what each of them would import anew
from safetensors.numpy import load_file
folder, served = sys.argv[1:]
stored = load_file(f"{folder}/golden.safetensors")
ecgs, wanted = (stored["signal"][:6] / 1000.0).astype("float32"), stored["embedding"][:6]

def go_through(order):
    for name in order:
        __import__(name)
    import kernels, mlflow, cardialign, cardialign.transformers
    from cardialign.sklearn import EcgEmbedder
    from transformers import AutoModel
    assert kernels.WHOSE == "not ours"
    found = {
        "library": cardialign.load_encoder(folder).embed(ecgs, sampling_rate=100),
        "sklearn": EcgEmbedder(folder, sampling_rate=100).fit_transform(ecgs),
        "transformers": AutoModel.from_pretrained(folder)(ecgs, sampling_rate=100).pooler_output.detach().numpy(),
        "mlflow": mlflow.pyfunc.load_model(served).predict(ecgs, params={"sampling_rate": 100.0}),
    }
    for name, embedding in found.items():
        numpy.testing.assert_allclose(embedding, wanted, atol=1e-5, err_msg=f"{name} {order}")
    assert not {"ray", "deepspeed", "wfdb", "pcodec"} & set(sys.modules)

names = ("cardialign", "transformers", "mlflow")
for order in (names, names[::-1]):
    child = os.fork()
    if child == 0:
        go_through(order)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        sys.exit(f"the order {order} does not work")
    print(*order)
"""


@pytest.mark.slow  # three large packages are imported in each order
@pytest.mark.timeout(700)
def test_transformers_and_mlflow_go_on_working_beside_it_in_every_order_of_two(
    beside: Environment, exported: Path, tmp_path: Path
) -> None:
    """Each of the three before and behind each other one."""
    (tmp_path / "served").mkdir()
    write_mlmodel(exported, tmp_path / "served", beside=False)
    said = beside.run("python", "-c", DOORS, exported, tmp_path / "served", cwd=tmp_path, deadline=600)
    assert len(said.split()) == 2 * 3


def test_the_table_of_extras_names_each_module_once() -> None:
    assert len(BROUGHT_BY) == sum(map(len, EXTRAS.values()))
