"""An encoder of somebody else from the command line: probed, fine-tuned, embedded with, refused where it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.cluster.commands.evaluate.explain_gap import MODES
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.pretrain.evaluation.gap import LINEAR_PROBE, ZERO_SHOT
from cardialign.pretrain.export.opening import open_encoder
from tests.cluster.conftest import Answer
from tests.support.like_ptb_xl import SPEC as LONG
from tests.support.like_ptb_xl import LikePtbXl
from tests.support.outside_models import Readout, write_torchscript
from tests.support.planted_source import ThreeFolds
from tests.support.tiny_set import SPEC

Call = Callable[..., Answer]
FOLDS = ("--labels", "finding", "--train-folds", "1", "--validation-folds", "2", "--test-folds", "3")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return build_shards(ThreeFolds(folder, 180), folder / "shards", SetPlan(SPEC), workers=1).path


@pytest.fixture
def readout(tmp_path: Path) -> Path:
    return write_torchscript(tmp_path / "readout.pt")


def test_a_file_of_somebody_else_is_probed_beside_the_floors_it_can_have(
    cardialign: Call, shards: Path, readout: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", readout, "--shards", shards, *FOLDS, "--bootstrap", 20)
    answer = cardialign(*words, "--out", tmp_path / "probe.json")
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "probe.json").read_text())
    assert {row["system"] for row in result["rows"]} == {"encoder", "random-kernels", "hand-features"}
    assert "does not say how its weights began" in result["task"]["no_untrained_floor"]
    assert result["task"]["systems"]["encoder"]["features"] == 6
    assert result["encoder"] == open_encoder(readout).digest and result["task"]["trained_on"]["status"] == "unknown"
    best = next(row for row in result["rows"] if row["system"] == "encoder" and row["reader"] == "linear probe")
    assert best["macro"] > 0.6, "up and down are in the mean of a lead"
    assert "no untrained encoder beside it: TorchScript does not say" in cardialign(*words, plain=True).out
    asked = cardialign(*words, "--floors", "untrained")
    assert asked.code == 1 and "has no untrained counterpart" in asked.json["problem"]


def test_it_is_fine_tuned_where_it_can_learn_and_its_file_stays(
    cardialign: Call, shards: Path, readout: Path, tmp_path: Path
) -> None:
    before = readout.read_bytes()
    words = ("evaluate", "fine-tune", "--shards", shards, *FOLDS, "--bootstrap", 0, "--set", "epochs=2")
    tuned = cardialign(*words, "--encoder", readout, "--set", "lr=0.05")
    assert tuned.code == 0, tuned.err
    assert tuned.json["start"] == open_encoder(readout).digest and len(tuned.json["seeds"][0]["history"]) == 2
    assert readout.read_bytes() == before
    partial = cardialign(*words, "--encoder", readout, "--preset", "partial")
    assert partial.code == 1 and "does not say which of its layers are its blocks" in partial.json["problem"]
    frozen = write_torchscript(tmp_path / "frozen.pt", freeze=True)
    refused = cardialign(*words, "--encoder", frozen)
    assert refused.code == 1 and "cannot be fine-tuned" in refused.json["problem"]
    assert "evaluate linear-probe" in refused.json["remedy"]


def test_it_is_chosen_among_others_by_what_can_be_had(
    cardialign: Call, shards: Path, readout: Path, tmp_path: Path
) -> None:
    flat = torch.nn.Linear(24, 6)
    flat.weight.data[1:] = flat.weight.data[:1]  # every record lies on one line
    module = Readout()
    module.map = flat
    other = write_torchscript(tmp_path / "flat.pt", module)
    words = ("evaluate", "select", other, readout, "--shards", shards, "--validation-folds", 2)
    answer = cardialign(*words, "--criterion", "rankme")
    assert answer.code == 0, answer.err
    assert answer.json["best"] == str(readout)
    assert all("has no text side" in each["reasons"]["retrieval"] for each in answer.json["ranking"])
    refused = cardialign(*words)
    assert refused.code == 1 and "cannot be judged by retrieval" in refused.json["problem"]
    probed = cardialign(*words, "--criterion", "probe", "--labels", "finding", "--train-folds", "1")
    assert probed.code == 0 and probed.json["best"] == str(readout), probed.err
    empty = cardialign("evaluate", "select", "", *words[4:])
    assert empty.code == 2 and "names no place" in empty.json["problem"]


def test_without_a_text_side_it_is_told_what_is_possible(cardialign: Call, shards: Path, readout: Path) -> None:
    from tests.support.planted_source import PROMPTS

    (readout.parent / "planted-v1.yaml").write_text(PROMPTS)
    words = ("--encoder", readout, "--shards", shards, "--prompts", readout.parent / "planted-v1.yaml")
    answer = cardialign("evaluate", "zero-shot", *words)
    assert answer.code == 1 and "has no text side" in answer.json["problem"]
    for possible in ("evaluate linear-probe", "evaluate fine-tune", "cardialign embed", "`text:`"):
        assert possible in answer.json["remedy"]


def test_one_ecg_is_embedded_with_the_conversions_that_are_allowed(
    cardialign: Call, readout: Path, tmp_path: Path
) -> None:
    signal = np.random.default_rng(0).normal(0, 0.3, (12, 100)).astype(np.float32)
    np.save(tmp_path / "ecg.npy", signal)
    words = ("embed", tmp_path / "ecg.npy", "--encoder", readout, "--sampling-rate", 100)
    refused = cardialign(*words)
    assert refused.code == 1 and "100 Hz" in refused.json["problem"] and "--resample" in refused.json["remedy"]
    answer = cardialign(*words, "--resample")
    assert answer.code == 0, answer.err
    alone = open_encoder(readout).embed(signal, sampling_rate=100, resample=True)[0]
    np.testing.assert_allclose(answer.json["embedding"], alone, atol=1e-6)
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)


def test_the_gap_of_two_protocols_is_explained_and_stored(cardialign: Call, tmp_path: Path) -> None:
    build_shards(LikePtbXl(tmp_path, 240), tmp_path / "set", SetPlan(LONG), workers=1)
    readout = write_torchscript(tmp_path / "readout.pt")
    words = ("evaluate", "explain-gap", readout, "--shards", tmp_path / "set", "--from", "clean-v2")
    more = ("--task", "ptb-xl-super", "--mode", "linear-probe", "--bootstrap", 20)
    answer = cardialign(*words, "--to", "benchmark-v1", *more, "--out", tmp_path / "gap.json")
    assert answer.code == 0, answer.err
    stored = json.loads((tmp_path / "gap.json").read_text())
    (gap,) = stored["gaps"]
    assert {spec: each["times"] for spec, each in stored["test_opened"].items()} == {
        "clean-v2:ptb-xl-super": 1,
        "benchmark-v1:ptb-xl-super": 1,
    }
    assert [each["name"] for each in gap["switches"]] == ["labels", "pieces"]
    assert gap["together"]["worth"]["value"] == pytest.approx(
        gap["together"]["figure"]["macro"] - gap["start"]["macro"]
    )
    probed = ("--encoder", readout, "--shards", tmp_path / "set", "--bootstrap", 0, "--floors", "none")
    again = cardialign("evaluate", "linear-probe", *probed, "--protocol", "clean-v2:ptb-xl-super")
    opening = again.json["task"]["test_opened"]
    assert opening["times"] == 2 and opening["earlier"][0]["what"] == "evaluate explain-gap"
    lines = cardialign(*words, "--to", "benchmark-v1", *more, plain=True).out.splitlines()
    assert re.match(r"clean-v2:ptb-xl-super to benchmark-v1:ptb-xl-super, linear-probe: macro AUROC 0\.\d{3}", lines[0])
    unwritable = cardialign(*words, "--to", "benchmark-v1", "--out", tmp_path / "set/manifest.json/x")
    assert unwritable.code == 1 and "cannot be written" in unwritable.json["problem"]
    unknown = cardialign(*words, "--to", "bench")
    assert unknown.code == 2 and "unknown evaluation protocol 'bench'" in unknown.json["problem"]
    wordless = cardialign(*words, "--to", "benchmark-v1", "--task", "ptb-xl-super")
    assert wordless.code == 1 and "has no text side" in wordless.json["problem"]
    assert MODES == (ZERO_SHOT, LINEAR_PROBE)


def test_a_protocol_that_cuts_records_cuts_them_for_probe_and_fine_tuning(cardialign: Call, tmp_path: Path) -> None:
    build_shards(LikePtbXl(tmp_path, 240), tmp_path / "set", SetPlan(LONG), workers=1)
    readout = write_torchscript(tmp_path / "readout.pt")
    words = ("--encoder", readout, "--shards", tmp_path / "set", "--bootstrap", 5)
    cut, whole = (
        cardialign("evaluate", "linear-probe", *words, "--protocol", f"{name}:ptb-xl-super", "--floors", "none").json
        for name in ("benchmark-v1", "clean-v2")
    )
    assert cut["task"]["records"] == "192 train, 24 val, 24 test" != whole["task"]["records"]
    assert cut["rows"][0]["macro"] != whole["rows"][0]["macro"]
    more = ("--protocol", "benchmark-v1:ptb-xl-super", "--set", "epochs=1")
    tuned = cardialign("evaluate", "fine-tune", *words, *more)
    assert tuned.code == 0, tuned.err
    assert (tuned.json["options"]["crop_seconds"], tuned.json["options"]["crop_average"]) == (2.5, "probabilities")


@pytest.mark.parametrize("command", ["embed", "evaluate linear-probe", "evaluate zero-shot", "evaluate fine-tune"])
def test_the_help_says_what_is_trusted(capsys: pytest.CaptureFixture[str], command: str) -> None:
    from cardialign.cluster.main import main

    assert main([*command.split(), "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "run no Python; a pickle is never loaded" in told and "--trust-remote-code" in told
