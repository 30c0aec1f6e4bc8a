"""What an encoder was trained on is stated or refused, never guessed; every mistake is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.outside.contract import EXAMPLE, OutsideContract, read_contract
from tests.support.outside_models import CONTRACT, write_contract, write_torchscript


def test_the_example_that_a_refusal_shows_is_a_contract(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(EXAMPLE)
    assert read_contract(path, "e").spec.samples == 5000
    assert set(yaml.safe_load(EXAMPLE)) == set(CONTRACT), "each key without a default is in it"


def test_an_encoder_without_a_contract_is_refused_with_one_to_fill_in(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "encoder.pt")
    (tmp_path / "encoder.pt.contract.yaml").unlink()
    with pytest.raises(UserError, match=r"encoder.pt has no signal contract(.|\n)*sampling_rate: 500"):
        open_encoder(path)


@pytest.mark.parametrize("key", sorted(CONTRACT))
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    place = write_contract(tmp_path / "e", **{key: None})
    with pytest.raises(UsageError, match=rf"- {key}: field required"):
        read_contract(place, "e")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"units": "mV", "normalisation": "zscore"},
            "units is mV and normalisation zscore; a normalised",
        ),
        ({"units": "normalised"}, "units is normalised and normalisation none"),
        ({"pooling": "mean"}, "pooling is mean and feature_axis not given"),
        ({"feature_axis": "last"}, "pooling is none and feature_axis last"),
        ({"leads": ["I", "I"]}, "leads: a lead is named twice"),
        ({"leads": ["MCL1"]}, "leads: MCL1: name leads among I, II, III"),
        ({"filter": {"high_pass": 50, "low_pass": 40, "order": 2}}, "high_pass 50 is not below low_pass 40"),
        ({"filter": {"low_pass": 25, "order": 2}}, "filter at 25 Hz needs a sampling_rate above 50"),
        ({"filter": {"order": 2}}, "neither high_pass nor low_pass"),
        ({"seconds": 0.51}, "is no whole number of samples"),
        ({"text": "words"}, "text and text_tokens belong together"),
        ({"sampling_rate": True}, "sampling_rate: true is no number"),
        ({"unit": "mV"}, "unit: unknown key; did you mean `units`"),
        ({"layout": "lead-time"}, "layout: 'lead-time' is not one of leads-time"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_contract(write_contract(tmp_path / "e", **changes), "e")
    assert told in str(refused.value) and "e.contract.yaml" in str(refused.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read_contract(write_contract(tmp_path / "e", units="V", dtype="int16", trained_on=None), "e")
    assert str(refused.value).count("\n  - ") == 3


def test_another_contract_is_another_encoder() -> None:
    first, other = (OutsideContract.model_validate({**CONTRACT, "units": unit}) for unit in ("uV", "mV"))
    assert first.digest != other.digest and first.digest == OutsideContract.model_validate(CONTRACT).digest
