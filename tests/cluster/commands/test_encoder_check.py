"""`encoder check`: a line for each way into an export, and exit code 1 where one gives other numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from cardialign.pretrain.run.integrity import write_digests


def test_a_sound_export_passes_and_one_with_another_weight_fails(
    cardialign: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    sound = cardialign("encoder", "check", exported)
    assert sound.code == 0 and sound.json["ok"] and sound.json["tolerance"] == 1e-5
    names = [each["name"] for each in sound.json["doors"]]
    assert names == ["library", "torch.export program", "scikit-learn", "transformers", "MLflow"]
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


def test_what_is_no_export_is_told(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    for place, code, words in (
        (tmp_path / "nowhere", 1, "does not exist"),
        (tmp_path, 1, "is not an exported encoder"),
        ("models:/tiny@candidate", 2, "is in the registry"),
    ):
        answer = cardialign("encoder", "check", place)
        assert answer.code == code and words in answer.json["problem"]
