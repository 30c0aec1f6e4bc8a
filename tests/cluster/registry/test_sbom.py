"""The bill of materials: what is installed, in CycloneDX's own schema, without places on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

from cardialign.cluster.registry import sbom
from cardialign.cluster.registry.registry import register
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.data_shards.files import sha256_of
from cardialign.pretrain.run.integrity import verify_export


def wrong(bill: str) -> list[object]:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return list(JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill, all_errors=True) or [])


def test_it_lies_beside_the_encoder_and_says_what_is_installed(exported: Path, tmp_path: Path, uri: str) -> None:
    register(exported, "billed", uri)
    version = open_client(uri).get_model_version("billed", "1")
    (path,) = (tmp_path / "mlartifacts").rglob("sboms/*/sbom.cdx.json")  # that of the export lies in the export
    assert version.tags["sbom"] == sha256_of(path) and path.parent.name == verify_export(exported)
    bill = json.loads(path.read_text())
    installed = {each["name"]: each["version"] for each in bill["components"]}
    for name in ("torch", "mlflow", "numpy", "ray"):
        assert installed[name] == importlib.metadata.version(name)
    assert "file:" not in path.read_text() and str(Path.home()) not in path.read_text()
    component = bill["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": verify_export(exported)}]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")


@pytest.mark.slow
def test_the_whole_bill_fits_the_schema_and_is_the_same_every_time() -> None:
    first = sbom.make_sbom("a" * 64)
    sbom._environment.cache_clear()
    assert first is not None and sbom.make_sbom("a" * 64) == first != sbom.make_sbom("b" * 64)
    assert wrong(first.decode()) == []
    assert wrong(json.dumps({**json.loads(first), "components": [{"name": 5}]})), "the schema refuses what is none"


def test_without_the_extra_there_is_none_and_nothing_else_is_missing(
    exported: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "cyclonedx_py" else found(name, *a)
    )
    monkeypatch.setattr(sbom, "_environment", sbom._environment.__wrapped__)
    assert register(exported, "unbilled", uri) == 1
    version = open_client(uri).get_model_version("unbilled", "1")
    assert "sbom" not in version.tags and "| sbom | not recorded |" in version.description
