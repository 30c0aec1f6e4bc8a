"""Methods, encoders and prompt sets of other packages: one that is the wrong thing is named, with its package."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.plugins import Table
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.config.named import encoder_section
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.evaluation.prompts import PROMPT_SETS, PROMPTS, load_prompts
from cardialign.pretrain.export.loaded import untrained_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.data import open_data
from cardialign.pretrain.training.loop import train
from tests.support.plug_ins import install, see
from tests.support.tiny_shards import RECORDS, config_for, make_shards

SPEC = SignalSpec(100.0, 2.5)
TABLES = {"method": METHODS, "encoder": ENCODERS}
BASES = {
    "method": "from cardialign.pretrain.methods.base import Method as Base\n",
    "encoder": "from cardialign.pretrain.encoders.base import EcgEncoder as Base\n",
}
OTHER = {"method": "encoder", "encoder": "method"}


def named(folder: Path, kind: str, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one plug-in `odd`, which is its `Thing`."""
    package = f"odd_{kind}_{abs(hash(code))}"
    install(folder, package, code, {"odd": f"{package}:Thing"}, f"cardialign.{kind}s")
    see(folder, TABLES[kind], monkeypatch)
    return package


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import json as Thing\n", "it is of type module, not a class that inherits from cardialign.pretrain"),
        ("def Thing(): pass\n", "it is of type function, not a class"),
        ("class Thing: pass\n", "Thing does not inherit from cardialign.pretrain"),
        ("BASE\nclass Thing(Base): Config = dict\n", "Thing.Config does not inherit from cardialign.pretrain.config"),
        ("BASE\nclass Thing(Base): Config = None\n", "Thing.Config does not inherit from cardialign.pretrain.config"),
        ("OTHER\nclass Thing(Base): pass\n", "Thing does not inherit from cardialign.pretrain"),
    ],
)
def test_a_plugin_that_is_the_wrong_thing_is_named_in_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: str, reason: str
) -> None:
    code = code.replace("BASE", BASES[kind]).replace("OTHER", BASES[OTHER[kind]])
    package = named(tmp_path, kind, code, monkeypatch)
    with pytest.raises(UsageError, match=f"{kind} 'odd' is a plug-in of {package} and cannot be used: {reason}"):
        parse_config({kind: {"name": "odd"}})


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(3)"])
def test_a_plugin_that_cannot_be_made_is_named_so_that_no_run_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: str
) -> None:
    code = f"{BASES[kind]}class Thing(Base):\n    def __init__(self, *given): {code}\n"
    package = named(tmp_path, kind, code, monkeypatch)
    config = parse_config({kind: {"name": "odd"}})
    with pytest.raises(
        UsageError, match=f"{kind} 'odd' is a plug-in of {package} and cannot be made: (Zero|SystemExit)"
    ):
        create_method(config, SPEC)


def test_what_a_plugin_says_of_its_configuration_stays_as_it_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "from cardialign.data_shards.errors import UserError\n"
    code = (
        f"{BASES['encoder']}{refusal}class Thing(Base):\n    def __init__(self, *given): raise UserError('too short')\n"
    )
    named(tmp_path, "encoder", code, monkeypatch)
    with pytest.raises(UserError, match=r"^too short$"):
        create_encoder(parse_config({"encoder": {"name": "odd"}}).encoder, SPEC)


@pytest.mark.parametrize("kind", TABLES)
def test_a_name_that_nobody_has_asks_for_the_package_that_declares_it(kind: str) -> None:
    way_out = f"unknown {kind} 'theirs'; known {kind}s: .*; or install the package that declares 'theirs'"
    with pytest.raises(UsageError, match=way_out):
        parse_config({kind: {"name": "theirs"}})
    with pytest.raises(UsageError, match=r"encoder\.json: .*install the package that declares 'theirs'"):
        encoder_section({"encoder": {"name": "theirs"}}, "encoder.json")


def test_prompt_sets_of_other_packages_stand_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = PROMPTS / "ptb-xl-super-v1.yaml"
    code = f"THEIRS = {str(shipped)!r}\nNUMBER = 3\nGONE = 'gone.yaml'\n"
    points = {"theirs": "their_words:THEIRS", "number": "their_words:NUMBER", "gone": "their_words:GONE"}
    install(tmp_path, "their_words", code, {**points, shipped.stem: "their_words:GONE"}, "cardialign.prompts")
    with caplog.at_level(logging.WARNING):
        see(tmp_path, PROMPT_SETS, monkeypatch)
    assert "plugin=their_words:GONE" in caplog.text and "one of our own" in caplog.text
    assert load_prompts("theirs") == load_prompts(shipped.stem) == load_prompts(shipped)
    for name, reason in {
        "number": "it is of type int, not the path of a YAML file",
        "gone": "there is no file gone.yaml",
    }.items():
        with pytest.raises(UsageError, match=f"plug-in of their_words and cannot be used: {reason}") as caught:
            load_prompts(name)
        assert shipped.stem in caught.value.remedy
    assert isinstance(PROMPT_SETS, Table) and set(PROMPT_SETS.own) == {path.stem for path in PROMPTS.glob("*.yaml")}


LATE = """
from cardialign.pretrain.methods.siglip import SigLip
class Thing(SigLip):
    def PLACE(self, *args, **kwargs):
        return {}["missing"]
"""


def _config(shards: Path, method: str) -> RunConfig:
    return parse_config({**config_for(shards).resolved(), "method": {"name": method}})


@pytest.mark.parametrize("place", ["inputs", "loss"])
def test_a_method_that_fails_in_training_is_named_with_its_package_and_the_step(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = named(tmp_path / "site", "method", LATE.replace("PLACE", place), monkeypatch)
    config = _config(make_shards(tmp_path / "shards"), "odd")
    with pytest.raises(UsageError, match=rf"method 'odd' is a plug-in of {package} and failed in step 1: KeyError"):
        train(config, tmp_path / "run", NullObserver())


def test_an_encoder_that_fails_when_it_embeds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = LATE.replace("methods.siglip import SigLip", "encoders.resnet1d import ResNet1d").replace(
        "SigLip", "ResNet1d"
    )
    package = named(tmp_path, "encoder", code.replace("PLACE", "forward"), monkeypatch)
    config = parse_config({"encoder": {"name": "odd", "width": 8, "embedding_dim": 8}})
    encoder = untrained_encoder(config, SPEC, with_reports=False)
    with pytest.raises(UsageError, match=rf"encoder 'odd' is a plug-in of {package} and cannot embed: KeyError"):
        encoder.embed(np.random.default_rng(0).normal(0, 0.3, (12, 250)).astype(np.float32), sampling_rate=100)


def test_a_method_of_reports_on_a_set_without_any_says_which_methods_need_none(tmp_path: Path) -> None:
    config = _config(make_shards(tmp_path / "shards", silent=RECORDS), "siglip")
    with pytest.raises(DataError, match=f"none of its {RECORDS} records has a report, and method siglip") as caught:
        open_data(config)
    assert all(name in caught.value.remedy for name in ("byol", "simclr", "st_mem"))
