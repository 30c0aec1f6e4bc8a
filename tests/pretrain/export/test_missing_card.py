"""A missingness card: bound to its encoder and its figures, part of the digest list, said once to who needs it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.missing_card import MissingnessCard, add_card, sealed, wrong_card
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import CARD, DIGESTS, GOLDEN, MISSINGNESS, verify_export, write_digests
from tests.support.small_encoder import SPEC, small_model

NONE = {"value": 0.0, "low": 0.0, "high": 0.0}


def figures(**changes: Any) -> dict[str, Any]:
    cells = [{"leads": k, "time": 0.0, "auroc": NONE, "lost": {"value": v, "low": v / 2, "high": 2 * v}}
             for k, v in ((0, 0.0), (3, 0.01), (6, 0.04), (9, 0.2))]  # fmt: skip
    cells.append({"leads": 5, "time": 0.5, "auroc": NONE, "lost": {"value": 0.9, "low": 0.9, "high": 0.9}})
    lost = {"value": 0.021, "low": 0.0141, "high": 0.029}
    values = {
        "measure": "zero-shot", "on": "virtual-findings-v2", "records": 500, "auroc": NONE,
        "surfaces": [{"chosen": "random", "cells": cells}],
        "presets": [{"name": "leads-i-ii-v2", "leads": ["I", "II", "V2"], "lost": lost}],
    }  # fmt: skip
    return {**values, **changes}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("encoder") / "plain"
    return export_encoder(config, model.state_dict(), out, training={"steps": 0}, spec=SPEC, program=False)


@pytest.fixture
def carded(plain: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "carded"))
    add_card(folder, sealed(figures(), verify_export(plain)))
    return folder


def leads(*present: int) -> np.ndarray:
    return np.isin(np.arange(12), present)


def test_what_to_expect_is_the_nearest_that_was_measured(carded: Path) -> None:
    card = load_encoder(carded).card
    assert card is not None
    on = "points of macro AUROC on virtual-findings-v2 (500 records, zero-shot)"
    assert card.expect(leads(0, 1, 7)) == f"I, II, V2: expect -2.1 (1.4 to 2.9) {on}"
    assert card.expect(leads(*range(12))) == ""
    random = f"{on}, leads drawn at random"
    assert card.expect(leads(*range(9))) == f"3 of 12 leads missing: expect -1.0 (0.5 to 2.0) {random}"
    assert card.expect(leads(*range(8))) == f"4 of 12 leads missing, measured at 3: expect -1.0 (0.5 to 2.0) {random}"
    assert card.expect(leads(0, 1)) == f"10 of 12 leads missing, measured at 9: expect -20.0 (10.0 to 40.0) {random}"
    assert card.expect(leads(0)) == "11 of 12 leads missing: nothing measured is near (measured: 3, 6, 9 missing)"
    assert card.expect(leads(*range(11))).startswith("1 of 12 leads missing: nothing measured is near")


def test_a_card_changes_the_digest_and_no_number_and_names_the_encoder_without_it(plain: Path, carded: Path) -> None:
    before, after = load_encoder(plain), load_encoder(carded)
    assert before.card is None and before.digest == before.bare_digest == verify_export(plain)
    assert after.bare_digest == before.digest != after.digest == verify_export(carded)
    signal = np.random.default_rng(0).normal(0, 0.3, (2, 12, 200))
    ours, theirs = (each.embed(signal, sampling_rate=100) for each in (before, after))
    assert np.array_equal(ours, theirs) and before.computing_digest() == after.computing_digest()
    created = [json.loads((each / DIGESTS).read_text())["created"] for each in (plain, carded)]
    assert created[0] == created[1], "the encoder was made when it was made"
    add_card(carded, sealed(figures(on="another set"), after.bare_digest))  # measured again, with its card
    again = load_encoder(carded)
    assert again.card is not None and "another set" in again.card.on and again.bare_digest == before.digest
    assert not [each for each in carded.parent.iterdir() if each != carded], "nothing is left beside it"


def test_the_model_card_says_it_too_once_and_is_else_as_it_was(plain: Path, carded: Path) -> None:
    before, after = (each / CARD for each in (plain, carded))
    assert after.read_bytes().startswith(before.read_bytes())
    assert "| only I, II, V2 | -2.1 (1.4 to 2.9) |" in after.read_text()
    add_card(carded, sealed(figures(on="another set"), verify_export(plain)))
    assert "virtual-findings" not in after.read_text() and after.read_text().count("another set") == 1
    assert load_encoder(carded).bare_digest == verify_export(plain)


def test_an_export_from_before_there_were_model_cards_takes_a_missingness_card(plain: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(plain, tmp_path / "old"))
    for name in (CARD, GOLDEN, DIGESTS):
        (old / name).unlink()
    write_digests(old)
    before = load_encoder(old).digest
    add_card(old, sealed(figures(), before))
    assert load_encoder(old).bare_digest == before and not (old / CARD).exists()


def test_it_is_said_once_for_the_same_leads(carded: Path, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(carded)
    signal = np.random.default_rng(0).normal(0, 0.3, (1, 3, 200))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            encoder.embed(signal, sampling_rate=100, leads=["I", "II", "V2"], allow_missing_leads=True)
        encoder.embed(signal[:, :2], sampling_rate=100, leads=["I", "II"], allow_missing_leads=True)
        encoder.embed(np.repeat(signal, 4, axis=1), sampling_rate=100)
    told = [each.getMessage() for each in caplog.records if "expect" in each.getMessage()]
    assert len(told) == 2 and "I, II, V2: expect -2.1 (1.4 to 2.9)" in told[0] and "10 of 12" in told[1]
    assert load_encoder(plain).card is None


def test_a_card_of_another_encoder_or_an_edited_one_is_refused(plain: Path, carded: Path, tmp_path: Path) -> None:
    config, model = small_model(seed=1)
    other = export_encoder(
        config, model.state_dict(), tmp_path / "other", training={"steps": 0}, spec=SPEC, program=False
    )
    card = json.loads((carded / MISSINGNESS).read_text())
    digest = verify_export(plain)
    with pytest.raises(UserError, match=f"card is of encoder {digest[:12]}, this one is"):
        add_card(other, card)
    assert not (other / MISSINGNESS).exists()
    shutil.copy(carded / MISSINGNESS, other)
    with pytest.raises(UserError, match=r"missingness\.json: not part of the export"):
        load_encoder(other)
    write_digests(other)  # whoever makes the list anew, too
    with pytest.raises(UserError, match=f"card is of encoder {digest[:12]}"):
        load_encoder(other)
    better = json.loads(json.dumps(card))
    better["presets"][0]["lost"]["value"] = 0.001
    assert "was edited" in wrong_card(better, digest)
    with pytest.raises(UserError, match="was edited"):
        add_card(plain, better)
    (carded / MISSINGNESS).write_text(json.dumps(better))
    with pytest.raises(UserError, match=r"missingness\.json: content changed"):
        load_encoder(carded)
    write_digests(carded)
    with pytest.raises(UserError, match="was edited"):
        load_encoder(carded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"presets": [{"leads": ["V7"], "lost": NONE}]}, "'V7' is no lead"),
        ({"presets": [{"leads": ["I"], "lost": {"value": None, "low": 0, "high": 0}}]}, "a figure is no number"),
        ({"surfaces": []}, "IndexError"),
        ({"records": "many"}, "ValueError"),
    ],
)
def test_a_card_that_says_no_figures_is_named(change: dict[str, Any], message: str) -> None:
    assert message in wrong_card(sealed(figures(**change), "d"), "d")
    assert wrong_card(sealed(figures(), "d"), "d") == ""
    assert "no missingness card" in wrong_card([], "d")
    assert isinstance(MissingnessCard.of(figures()), MissingnessCard)
