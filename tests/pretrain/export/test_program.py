"""The encoder of every method's recipe leaves as a program: a run that has been trained must not end at its export.

Those of the main recipe are exported by the demo. An encoder that several recipes share is traced once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import load_config, recipe_names
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.export.program import save_program
from tests.support.small_encoder import SPEC, small_model

LARGE = ("-published", "-base", "-xl", "-small", "-vit", "-stage-2")
"""Recipes whose encoder is a smaller one's in other sizes."""


def one_of_each_encoder() -> list[str]:
    """A recipe for every encoder, with every way of normalising, that small recipes name."""
    names = [name for name in recipe_names() if not name.endswith(LARGE) and not name.startswith("cardialign-")]
    found: dict[tuple[str, str], str] = {}
    for name in names:
        config = load_config(name)
        found.setdefault((config.encoder.model_dump_json(), config.data.normalisation), name)
    return list(found.values())


RECIPES = one_of_each_encoder()


def test_what_comes_out_goes_to_numpy_as_it_is_and_the_encoder_stays_one_that_trains(tmp_path: Path) -> None:
    _, model = small_model()
    save_program(model.ecg, tmp_path / "encoder.pt2")
    assert all(each.requires_grad for each in model.ecg.parameters())
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    found = program(
        torch.randn(2, 12, SPEC.samples), torch.ones(2, 12, dtype=torch.bool), torch.full((2,), SPEC.samples)
    )
    assert found.numpy().shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_traced_and_gives_what_it_gave_for_other_batches(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe)
    torch.manual_seed(0)
    encoder = create_encoder(config.encoder, SignalSpec(100, 10), config.data.normalisation).eval()
    save_program(encoder, tmp_path / "encoder.pt2")
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    for count in (1, 3):
        signal, leads = torch.randn(count, 12, 1000), torch.ones(count, 12, dtype=torch.bool)
        leads[0, 4] = False
        valid = torch.full((count,), 900)
        with torch.no_grad():
            wanted = encoder(signal, leads, valid).embedding
        torch.testing.assert_close(program(signal, leads, valid), wanted, atol=2e-5, rtol=1e-4)
