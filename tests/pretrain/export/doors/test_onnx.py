"""`encoder.onnx`: what onnxruntime computes of it are the ten embeddings; what is no ECG in mV comes back as NaN."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import MissingPackageError
from cardialign.pretrain.export.doors import onnx as door
from cardialign.pretrain.export.doors.check import ONNX_DOOR, check_door
from cardialign.pretrain.export.doors.golden import FEW_LEADS, REFUSED
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.program import program_of
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import CARD, DIGESTS, MODEL, ONNX, listed_names, verify_export, write_digests
from tests.support.small_encoder import SPEC, small_model

SMALL: dict[str, dict[str, Any]] = {
    "cardialign": {},
    "resnet1d": {"width": 16},
    "vit1d": {"width": 32, "depth": 1, "heads": 2},
    "conv_transformer": {
        "width": 32,
        "depth": 1,
        "heads": 2,
        "channels": 16,
        "position_kernel": 16,
        "position_groups": 4,
    },
    "s4": {"width": 32, "depth": 1},
}
"""Every encoder of ours, small: what a tracer asks of it does not depend on its size."""


def exported(folder: Path, **changes: Any) -> Path:
    config, model = small_model(**changes)
    return export_encoder(config, model.state_dict(), folder, training={}, spec=SPEC, program=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("onnx") / "encoder")


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """In the place of the packages: a file is a word, and a session computes as a module of torch does."""

    def become(module: Any) -> None:
        def session(content: bytes, *_: Any, **__: Any) -> Any:
            assert content == b"a graph"

            def run(_: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
                assert list(given) == ["signal", "lead_mask", "valid_samples"]
                with torch.inference_mode():
                    return [module(*map(torch.from_numpy, given.values())).numpy()]

            return SimpleNamespace(run=run)

        runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=session)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        for name in ("onnx", "onnxscript"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace())
        monkeypatch.setattr(door, "save_onnx", lambda encoder, path: path.write_bytes(b"a graph"))

    return become


def test_without_the_packages_it_says_which_extra_brings_them(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"encoder\.onnx needs onnx, which is not installed") as raised:
        door.add_onnx(copy)
    assert raised.value.remedy == 'pip install "cardialign[onnx]"' and verify_export(copy)
    assert "`cardialign export --onnx` writes one" in check_door(copy, ONNX_DOOR).closed


def test_it_is_listed_carded_and_held_to_the_ten_ecgs(copy: Path, stand_in: Callable[[Any], None]) -> None:
    before = json.loads((copy / DIGESTS).read_text())
    stand_in(program_of(load_encoder(copy).ecg))
    door.add_onnx(copy)
    after = json.loads((copy / DIGESTS).read_text())
    assert ONNX in listed_names(copy) and after["created"] == before["created"]
    assert {name for name in after["files"] if after["files"][name] != before["files"].get(name)} == {ONNX, CARD}
    blocks = re.findall(r"```python\n(.*?)```", (copy / CARD).read_text(), re.DOTALL)
    (block,) = [each for each in blocks if ONNX in each]
    assert len(block.splitlines()) == 3
    found = check_door(copy, ONNX_DOOR)
    assert (found.wrong, found.records) == ("", 9) and (found.difference or 0) < 1e-6
    (copy / ONNX).write_bytes(b"another")
    with pytest.raises(UserError, match=rf"{ONNX}: content changed"):
        check_door(copy, ONNX_DOOR)


def test_a_file_that_gives_other_numbers_or_takes_what_is_no_ecg_is_no_export(
    copy: Path, stand_in: Callable[[Any], None]
) -> None:
    encoder = load_encoder(copy).ecg
    stand_in(lambda *given: encoder(torch.nan_to_num(given[0]), *given[1:]).embedding)
    with pytest.raises(UserError, match=r"takes a record with a sample that is no number") as raised:
        door.add_onnx(copy)
    assert "without --onnx" in raised.value.remedy


def through_runtime(folder: Path, batch: slice) -> np.ndarray:
    """The stored signals, a part of them, as somebody who has onnxruntime and numpy alone would embed them."""
    runtime = pytest.importorskip("onnxruntime")
    stored = load_file(folder / "golden.safetensors")
    signal = stored["signal"].astype(np.float32) / 1000
    signal[stored["signal"] == -32768] = np.nan
    given = {"signal": signal, "lead_mask": stored["lead_mask"], "valid_samples": stored["valid_samples"]}
    session = runtime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {name: each[batch] for name, each in given.items()})[0]
    return found


@pytest.mark.slow  # torch's tracer takes its time
@pytest.mark.parametrize("word", SMALL)
def test_onnxruntime_computes_the_ten_embeddings_of_every_encoder(word: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='needs the extra onnx: pip install "cardialign[onnx]"')
    other = {"encoder": {"name": word, "embedding_dim": 8, **SMALL[word]}} if SMALL[word] else {}
    folder = exported(tmp_path / "encoder", **other)
    door.add_onnx(folder)
    verify_export(folder)
    wanted = load_file(folder / "golden.safetensors")["embedding"]
    whole = through_runtime(folder, slice(None))
    np.testing.assert_allclose(whole[:REFUSED], wanted[:REFUSED], atol=1e-5)
    assert np.isnan(whole[REFUSED]).all()
    alone = through_runtime(folder, slice(FEW_LEADS, FEW_LEADS + 1))
    np.testing.assert_allclose(alone, wanted[FEW_LEADS : FEW_LEADS + 1], atol=1e-5, err_msg="a batch of one")
    text = (folder / ONNX).read_bytes()
    assert b".py" not in text and str(Path(__file__).parents[4]).encode() not in text
    assert (folder / ONNX).stat().st_size > 0.9 * (folder / MODEL).stat().st_size, "the weights are in it"
    (folder / DIGESTS).unlink()
    write_digests(folder)
    assert check_door(folder, ONNX_DOOR).wrong == ""
