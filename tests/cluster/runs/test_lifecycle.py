"""What can be found wrong before a worker starts is found then, and a run remembers where it started from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cardialign.cluster.registry.registry import register
from cardialign.cluster.runs.lifecycle import _with_local_start, prepare, run
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.run.files import START, START_NOTE
from cardialign.pretrain.run.integrity import write_digests
from tests.support.tiny_set import SMALL


def config_of(shards: Path, *overrides: str) -> RunConfig:
    return load_config("simclr-tiny", [*SMALL, f"data.shards={shards}", *overrides])


def test_a_start_that_is_none_is_named_before_ray(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from: .* is no run directory, no checkpoint and no exported encoder"):
        prepare(config_of(shards, f"init_from={tmp_path}"))
    with pytest.raises(UserError, match=r"init_from: .* is no run directory"):
        prepare(config_of(shards, f"init_from={shards}"))


def test_a_method_that_cannot_use_the_encoder_is_named_before_ray(shards: Path) -> None:
    config = load_config("st-mem-tiny", [*SMALL, f"data.shards={shards}", "encoder={name: resnet1d}"])
    with pytest.raises(UsageError, match=r"set encoder\.name to vit1d"):
        prepare(config)


def test_a_method_without_reports_asks_for_no_text_bank(shards: Path) -> None:
    facts = prepare(config_of(shards))
    assert facts["records"] > 0 and facts["text_encoder_fingerprint"] == ""


def test_a_name_that_cannot_be_registered_ends_the_run_before_it_begins(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a registered encoder"):
        run(config_of(shards), tmp_path / "run", register_as="bad/name:x")
    assert not (tmp_path / "run").exists()


def test_a_start_from_the_registry_is_pulled_once_and_noted(exported: Path, tmp_path: Path, uri: str) -> None:
    version = register(exported, "begun", uri)
    (tmp_path / "run").mkdir()
    config = load_config("cardialign-demo", [*SMALL, "init_from=models:/begun@candidate"])
    local = _with_local_start(config, tmp_path / "run", uri)
    assert local.init_from == str(tmp_path / "run" / START)
    note = json.loads((tmp_path / "run" / START_NOTE).read_text())
    assert (note["asked"], note["name"], note["version"]) == ("models:/begun@candidate", "begun", version)
    assert len(note["digest"]) == 64
    longer = shutil.copytree(exported, tmp_path / "longer")
    (longer / "provenance.json").write_text("{}")
    (longer / "digests.json").unlink()
    write_digests(longer)
    assert register(longer, "begun", uri) == 2  # the alias moves on, the run does not
    assert _with_local_start(config, tmp_path / "run", uri) == local
    assert json.loads((tmp_path / "run" / START_NOTE).read_text()) == note
