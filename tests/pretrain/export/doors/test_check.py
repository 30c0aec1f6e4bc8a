"""Every way into an export is held against its ten ECGs: other numbers are found, and who takes what is no ECG."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.encoders.blocks.normalise import NORMALISATIONS
from cardialign.pretrain.export.doors import check
from cardialign.pretrain.export.doors.check import Door, check_doors
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.program import program_of
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.integrity import CARD, CONTRACT, DIGESTS, GOLDEN, MODEL, PROGRAM, write_digests
from tests.support.small_encoder import SPEC, small_config, small_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("doors") / "encoder"
    return export_encoder(config, model.state_dict(), out, training={}, spec=SPEC, program=False)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def doors(folder: Path) -> dict[str, Door]:
    """Of a folder whose digests are those of what lies in it now."""
    (folder / DIGESTS).unlink()
    write_digests(folder)
    return {each.name: each for each in check_doors(folder)[1]}


def test_the_ways_that_are_there_agree_and_the_others_are_named(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = doors(copy)
    assert [each.wrong for each in found.values()] == [""] * 5
    for name in ("library", "scikit-learn", "transformers"):
        assert found[name].records == 9 and found[name].difference is not None and found[name].difference < 1e-6
    assert "exported without" in found["torch.export program"].closed
    assert caplog.text == "", "what is remarked on in a user's ECGs is meant here"


def test_a_changed_weight_is_found(copy: Path) -> None:
    weights = load_file(copy / MODEL)
    name = next(each for each, tensor in weights.items() if tensor.ndim == 2)
    weights[name][0] *= -1
    save_file(weights, copy / MODEL)
    found = doors(copy)
    assert all("differs by" in found[name].wrong for name in ("library", "scikit-learn", "transformers"))


def test_another_normalisation_is_found(copy: Path) -> None:
    values = json.loads((copy / CONTRACT).read_text())
    other = next(each for each in NORMALISATIONS if each != values["normalisation"])
    (copy / CONTRACT).write_text(json.dumps({**values, "normalisation": other}))
    assert "differs by" in doors(copy)["library"].wrong


def test_a_file_that_changed_or_went_and_an_export_without_ecgs_are_named(copy: Path) -> None:
    (copy / GOLDEN).write_bytes((copy / GOLDEN).read_bytes()[:-1])
    (copy / CARD).unlink()
    with pytest.raises(UserError, match=f"{CARD}: missing(.|\n)*{GOLDEN}: content changed"):
        check_doors(copy)
    (copy / GOLDEN).unlink()
    with pytest.raises(UserError, match="exported before exports had ECGs"):
        doors(copy)


@pytest.fixture
def with_program(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Door]:
    """What is said of a program that computes as this module does: tracing takes half a minute."""

    def said(module: Any) -> Door:
        with zipfile.ZipFile(copy / PROGRAM, "w") as archive:
            archive.writestr("encoder/archive_format", "pt2")
        opened = type("Opened", (), {"module": lambda self: module})()
        monkeypatch.setattr(check.torch.export, "load", lambda path: opened)
        return doors(copy)["torch.export program"]

    return said


def test_a_program_is_held_to_the_same_and_must_refuse_what_is_no_ecg(
    exported: Path, with_program: Callable[[Any], Door]
) -> None:
    encoder = load_encoder(exported).ecg
    sound = with_program(program_of(encoder))
    assert sound.wrong == "" and sound.records == 9

    def unguarded(*given: torch.Tensor) -> torch.Tensor:
        return encoder(torch.nan_to_num(given[0]), *given[1:]).embedding

    found = with_program(unguarded)
    assert "takes a record with a sample that is no number" in found.wrong
    assert "differs by" in found.wrong, "and a flat lead was read as one that holds a signal"
    silent = with_program(lambda *given: torch.full((10, 8), torch.nan))
    assert "gives no numbers" in silent.wrong and silent.difference is None
    assert "(4,) numbers" in with_program(lambda *given: torch.ones(10, 4)).wrong


def test_a_program_that_does_not_run_here_is_told_by_who_wrote_it(
    copy: Path, with_program: Callable[[Any], Door]
) -> None:
    def broken(*given: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator\nat great length")

    with pytest.raises(UserError, match=r"encoder\.pt2 cannot be run: RuntimeError: no such operator") as raised:
        with_program(broken)
    assert "great length" not in raised.value.problem
    told = json.loads((copy / "provenance.json").read_text())
    told["versions"]["torch"] = "99.0"
    (copy / "provenance.json").write_text(json.dumps(told))
    assert "torch 99.0 wrote it" in with_program(broken).closed


def test_an_encoder_that_reads_the_age_is_asked_with_it_where_a_way_takes_one(tmp_path: Path) -> None:
    config = small_config(encoder={**small_config().encoder.model_dump(exclude={"name"}), "age_gate": True})
    torch.manual_seed(0)
    model = create_method(config, SPEC).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            parameter.data.normal_(std=0.3)  # as if the gates had learnt something
    out = export_encoder(config, model.state_dict(), tmp_path / "aged", training={}, spec=SPEC, program=False)
    found = doors(out)
    assert (found["library"].wrong, found["library"].records) == ("", 9)
    assert (found["transformers"].wrong, found["transformers"].records) == ("", 9)
    assert (found["scikit-learn"].wrong, found["scikit-learn"].records) == ("", 5), "those of unknown age"


@pytest.mark.slow  # torch.export traces for half a minute
def test_the_program_of_another_encoder_is_found(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        config, model = small_model(seed=seed)
        folders.append(export_encoder(config, model.state_dict(), tmp_path / str(seed), training={}, spec=SPEC))
    assert doors(folders[0])["torch.export program"].difference == pytest.approx(0, abs=1e-5)
    shutil.copy(folders[1] / PROGRAM, folders[0] / PROGRAM)
    found = doors(folders[0])
    assert "differs by" in found["torch.export program"].wrong and found["library"].wrong == ""
    assert np.isfinite(found["torch.export program"].difference)


def test_a_program_that_is_changed_after_it_was_looked_at_is_not_run(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may write while this one checks: what was judged is what is run, or nothing is."""
    mark, read = tmp_path / "ran", check.read_export
    hostile = {"as_expr": {"expr_str": f"__import__('pathlib').Path({str(mark)!r}).touch()"}}
    with zipfile.ZipFile(copy / PROGRAM, "w") as written:
        written.writestr("encoder/byteorder", "little")

    def and_then(folder: Path) -> Any:
        parts = read(folder)
        with zipfile.ZipFile(folder / PROGRAM, "w") as written:
            written.writestr("encoder/models/model.json", json.dumps(hostile))
        return parts

    monkeypatch.setattr(check, "read_export", and_then)
    monkeypatch.setattr(check, "DOORS", {"torch.export program": check._program})
    with pytest.raises(UserError, match="changed while it was looked at"):
        doors(copy)
    assert not mark.exists()
