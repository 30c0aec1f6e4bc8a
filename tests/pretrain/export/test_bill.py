"""The bill of materials of an export: the packages below ours in CycloneDX's own schema, digested as any file."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import sha256_of
from cardialign.pretrain.export import bill
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import BILL, listed_names, verify_export, write_digests
from tests.support.small_encoder import SPEC, small_model


def test_it_names_what_made_the_encoder_and_nothing_else() -> None:
    told = json.loads(bill.bill_of_materials("a" * 64))
    named = {each["name"]: each["version"] for each in told["components"]}
    for name in ("torch", "numpy", "deepspeed", "triton", "colorful"):  # colorful: ray[default] asks for it
        assert named[name] == importlib.metadata.version(name)
    assert not {"pytest", "ruff", "mypy"} & named.keys(), "tools that happen to lie beside it did not make it"
    assert told["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]


def test_it_is_the_same_every_time() -> None:
    made = bill.bill_of_materials("a" * 64)
    bill._packages.cache_clear()
    assert bill.bill_of_materials("a" * 64) == made != bill.bill_of_materials("b" * 64)


@pytest.mark.slow  # CycloneDX reads its schema for seconds
def test_it_fits_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    monkeypatch.setattr(bill, "_packages", lambda: (("numpy", "2.4.6"), ("torch", "2.13.0+cpu")))
    made = bill.bill_of_materials("a" * 64).decode()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert not list(validator.validate_str(made, all_errors=True) or [])
    assert list(validator.validate_str(made.replace('"library"', '"lib"'), all_errors=True) or [])


def test_it_lies_in_the_export_and_is_verified_and_an_export_from_before_it_is_read(
    tmp_path: Path,
) -> None:
    config, model = small_model()
    exported = export_encoder(config, model.state_dict(), tmp_path / "encoder", training={}, spec=SPEC, program=False)
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    assert BILL in listed_names(copy)
    told = json.loads((copy / BILL).read_text())
    assert told["metadata"]["component"]["hashes"][0]["content"] == sha256_of(copy / "model.safetensors")
    (copy / BILL).write_bytes((copy / BILL).read_bytes().replace(b"torch", b"evil-"))
    with pytest.raises(UserError, match=f"{BILL}: content changed"):
        verify_export(copy)
    (copy / BILL).unlink()
    with pytest.raises(UserError, match=f"{BILL}: missing"):
        verify_export(copy)
    (copy / "digests.json").unlink()
    write_digests(copy)
    assert verify_export(copy) != verify_export(exported)
