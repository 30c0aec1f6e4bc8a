"""`encoder check`: a line for each way into an export, and exit code 1 where one gives other numbers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cardialign.pretrain.export.doors.onnx import add_onnx
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import write_digests
from tests.support.small_encoder import SPEC, small_model


def test_a_sound_export_passes_and_one_with_another_weight_fails(
    cardialign: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    sound = cardialign("encoder", "check", exported)
    assert sound.code == 0 and sound.json["ok"] and sound.json["tolerance"] == 1e-5
    names = [each["name"] for each in sound.json["doors"]]
    assert names == ["library", "torch.export program", "ONNX", "scikit-learn", "transformers", "MLflow"]
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    for tensor in weights.values():
        tensor *= 1.01 if tensor.is_floating_point() else 1
    save_file(weights, copy / "model.safetensors")
    changed = cardialign("encoder", "check", copy)
    assert changed.code == 1 and "model.safetensors: content changed" in changed.json["problem"]
    (copy / "digests.json").unlink()
    write_digests(copy)
    found = cardialign("encoder", "check", copy, plain=True)
    (line,) = [line for line in found.out.splitlines() if line.startswith("library")]
    assert found.code == 1 and float(line.split()[-1]) > 1e-5 and "more than 1e-05" in found.out


@pytest.mark.slow  # torch traces the encoder, twice where ONNX is there; each way in alone has its quick tests
def test_all_six_ways_agree_on_the_ten_ecgs(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    config, model = small_model()
    folder = export_encoder(config, model.state_dict(), tmp_path / "encoder", training={}, spec=SPEC)
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    if has_onnx:
        add_onnx(folder)
    answer = cardialign("encoder", "check", folder)
    doors = {each["name"]: each for each in answer.json["doors"]}
    closed = {name for name, each in doors.items() if each["closed"]}
    assert answer.code == 0 and len(doors) == 6 and closed == (set() if has_onnx else {"ONNX"})
    for name in doors.keys() - closed:
        assert doors[name]["records"] == 9 and doors[name]["difference"] < 1e-5 and not doors[name]["wrong"], name


def test_what_is_no_export_is_told(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    for place, code, words in (
        (tmp_path / "nowhere", 1, "does not exist"),
        (tmp_path, 1, "is not an exported encoder"),
        ("models:/tiny@candidate", 2, "is in the registry"),
    ):
        answer = cardialign("encoder", "check", place)
        assert answer.code == code and words in answer.json["problem"]
