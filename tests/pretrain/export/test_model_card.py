"""The model card of an export: what no file can check stands first, how to load it works as it stands there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cardialign.cluster.registry.pyfunc.served import ServedEncoder
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.model_card import model_card
from cardialign.pretrain.export.trained_on import TrainedOn, TrainedSet
from cardialign.pretrain.export.write import export_encoder
from tests.support.small_encoder import SPEC, small_model

ROOT = Path(__file__).parents[3]
SEEN = {"source": "ptb-xl", "fingerprint": "f" * 64, "records": 557, "patients": 471, "folds": [1, 2], "split": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("carded") / "encoder"
    seen = TrainedOn((TrainedSet(SEEN),), ("what else it saw is not known",))
    start = {"init_from": {"export": "earlier", "digest": "d" * 64}, "steps": 7}
    return export_encoder(config, model.state_dict(), out, training=start, spec=SPEC, trained_on=seen, program=False)


def carded(folder: Path, program: bool = True, **changes: Any) -> str:
    """The card of these files, with other words in their place."""
    values = {name: json.loads((folder / name).read_text()) for name in ("config.json", "signal_contract.json")}
    provenance = json.loads((folder / "provenance.json").read_text())
    return model_card(values["config.json"] | changes, values["signal_contract.json"], provenance, program)


def test_what_nothing_can_check_stands_first_with_what_it_must_be(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    first = text.split("## ")[1]
    assert first.startswith("what nothing in this folder can check")
    for words in ("100 Hz, 200 samples for 2 s", "I, II, III, aVR, aVL, aVF, V1", "in mV", "not filtered"):
        assert words in first


def test_it_says_what_it_is_what_it_saw_and_what_it_is_not_for(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    numbers = sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
    for words in (
        f"| parameters | {numbers} |",
        "| method | cardialign |",
        "| code version | 0.1.0 |",
        f'| ptb-xl | 557 | 471 | {{"folds": \\[1, 2\\], "split": null}} | {"f" * 64} | CC BY 4.0 |',
        "- what else it saw is not known",
        "- None were measured",
        "Not for diagnosis",
        "Of the code that made it: Apache-2.0",
    ):
        assert words in text
    assert "encoder.pt2" not in text, "this export has no program"
    assert "encoder.pt2" in carded(folder)


def test_it_names_no_place_on_a_machine(folder: Path) -> None:
    for text in ((folder / "README.md").read_text(), carded(folder)):
        assert not re.search(r"(?<![\w.:/])/[\w.-]+/[\w.-]+", text) and str(folder.parent) not in text


def test_words_of_others_do_not_act_in_it(folder: Path) -> None:
    text = carded(folder, name="x\x1b[2J\n# <script>alert(1)</script> | [a](http://b) `c`")
    (title,) = [line for line in text.splitlines() if line.startswith("# ")]
    assert "\x1b" not in text and "<script>" not in text and r"\[a\](http" in title
    assert r"\<script\>" in title and r"\`c\`" in title


def test_the_page_of_the_ways_in_has_the_lines_of_a_card(folder: Path) -> None:
    told = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("config", "signal_contract", "provenance")
    }
    told["signal_contract"] |= {"sampling_rate": 500.0}
    card = model_card(told["config"], told["signal_contract"], told["provenance"], program=True, onnx=True)
    page = (ROOT / "pretrain" / "export" / "DOORS.md").read_text()
    wanted, found = (
        sorted(re.sub(r"\n+", "\n", each) for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        for text in (card, page)
    )
    assert len(found) == 6 and found == wanted and all(len(each.splitlines()) == 3 for each in found)


def test_the_ways_to_load_it_give_the_stored_embeddings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", carded(folder).replace("FOLDER", str(folder)), re.DOTALL)
    stored = load_file(folder / "golden.safetensors")
    wanted = stored["embedding"][:6]
    given = {"millivolts": stored["signal"][:6] / 1000.0}
    library, program, sklearn, hub, registry = blocks
    served = ServedEncoder(load_encoder(folder))  # what MLflow makes of "models:/NAME@ALIAS"
    pyfunc = SimpleNamespace(load_model={"models:/NAME@ALIAS": served}.__getitem__)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(pyfunc=pyfunc))
    assert all(len(block.splitlines()) == 3 for block in blocks)
    for block, name in ((library, "embedding"), (sklearn, "features"), (hub, "embedding"), (registry, "embedding")):
        names: dict[str, Any] = dict(given)
        exec(block, names)
        np.testing.assert_allclose(torch.as_tensor(names[name]).detach(), wanted, atol=1e-5)

    class Opened:
        def module(self) -> Any:
            return lambda *tensors: [each.shape for each in tensors]

    monkeypatch.setattr(torch.export, "load", lambda path: Opened())
    names = {"signal": torch.zeros(2, 12, 200), "lead_mask": torch.ones(2, 12), "valid_samples": torch.ones(2)}
    exec(program, names)
    assert names["embedding"] == [(2, 12, 200), (2, 12), (2,)]
