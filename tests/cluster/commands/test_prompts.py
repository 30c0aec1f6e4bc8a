"""`cardialign prompts`: what stands for which class can be read without opening a file of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.loaded import load_encoder
from tests.cluster.conftest import Answer

Call = Callable[..., Answer]


def test_the_list_names_every_set_with_its_label_set_and_size(cardialign: Call) -> None:
    found = {each["name"]: each for each in cardialign("prompts", "list").json["prompt_sets"]}
    assert found["challenge-v1"]["label_set"] == "challenge" and found["challenge-v1"]["classes"] == 26
    assert found["ptb-xl-super-v2"]["classes"] == 5 and found["csn-chapman-v2"]["label_set"] == "chapman"
    printed = cardialign("prompts", "list", plain=True).out
    assert all(name in printed for name in found)


def test_a_set_is_shown_with_every_word_of_it(cardialign: Call) -> None:
    shown = cardialign("prompts", "show", "cpsc2018-v2").json
    normal = shown["classes"][0]
    assert normal["code"] == "Normal" and "Abnormal ECG" in normal["against"]
    printed = cardialign("prompts", "show", "cpsc2018-v2", plain=True).out
    for each in shown["classes"]:
        assert all(text in printed for text in (each["code"], each["name"], *each["prompts"], *each["against"]))


def test_the_ensemble_over_leads_is_the_name_and_the_name_in_each_of_twelve(cardialign: Call) -> None:
    shown = cardialign("prompts", "show", "challenge-v1", "--words", "names-in-leads").json
    first = shown["classes"][0]
    assert shown["combine"] == "max"
    assert first["prompts"] == [first["name"], *(f"{first['name']} in lead {lead}" for lead in STANDARD_LEADS)]
    names = cardialign("prompts", "show", "challenge-v1", "--words", "names").json
    assert names["classes"][0]["prompts"] == [first["name"]] and names["digest"] != shown["digest"]


def test_an_escape_sequence_in_a_set_is_refused_and_an_unknown_set_answered(cardialign: Call, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('name: m\nversion: 1\nlabel_set: l\nstyle: "s\\e[2J"\nclasses: {A: {name: a, prompts: [b]}}\n')
    assert "\x1b" not in cardialign("prompts", "show", file, plain=True).out
    answer = cardialign("prompts", "show", "challenge-v9")
    assert answer.code == 2 and "challenge-v1" in answer.json["remedy"]


@pytest.mark.slow
def test_zero_shot_takes_the_words_and_says_which(cardialign: Call, exported: Path, shards: Path) -> None:
    base = ("evaluate", "zero-shot", "--encoder", exported, "--shards", shards, "--bootstrap", 5)
    answer = cardialign(*base, "--prompts", "virtual-findings-v2", "--words", "names")
    assert answer.code == 0 and answer.json["prompts"]["name"] == "virtual-findings-v2, class names"


def test_a_protocol_chooses_its_own_words(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    base = ("evaluate", "zero-shot", "--encoder", tmp_path, "--shards", shards)
    refused = cardialign(*base, "--protocol", "clean-v2:ptb-xl-super", "--words", "names")
    assert refused.code == 2 and "--words with --protocol" in refused.json["problem"]


@pytest.mark.parametrize("words", ["prompts", "names-in-leads"])
def test_vectors_of_classes_score_records_without_our_code(
    cardialign: Call, exported: Path, tmp_path: Path, words: str
) -> None:
    """numpy and safetensors alone give what the encoder itself gives a class."""
    out = tmp_path / "classes.safetensors"
    answer = cardialign(
        "prompts", "vectors", "virtual-findings-v2", "--encoder", exported, "--words", words, "--out", out
    )
    assert answer.code == 0, answer.err
    with safe_open(out, framework="numpy") as file:
        vectors, first, facts = file.get_tensor("vectors"), file.get_tensor("first"), file.metadata()
    codes = json.loads(facts["codes"])
    assert len(first) == len(codes) == answer.json["classes"] and facts["encoder"] == answer.json["encoder"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    encoder = load_encoder(exported)
    shape = (4, 12, encoder.contract.samples)
    signal = np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)
    embedding = encoder.embed(signal, sampling_rate=encoder.contract.sampling_rate)
    scores = np.maximum.reduceat(embedding @ vectors.T, first, axis=1)
    shown = cardialign("prompts", "show", "virtual-findings-v2", "--words", words).json
    for column, each in enumerate(shown["classes"]):
        own = encoder.embed_text(each["prompts"])
        if words == "prompts":
            mean = own.mean(0) - (encoder.embed_text(each["against"]).mean(0) if each["against"] else 0)
            expected = embedding @ (mean / np.linalg.norm(mean))
        else:
            expected = (embedding @ own.T).max(axis=1)
        assert each["code"] == codes[column]
        np.testing.assert_allclose(scores[:, column], expected, atol=1e-5)


def test_vectors_are_refused_where_none_can_stand(cardialign: Call, exported: Path, tmp_path: Path) -> None:
    given = ["prompts", "vectors", "virtual-findings-v2", "--encoder", exported, "--out"]
    assert ".safetensors" in cardialign(*given, tmp_path / "x.npy").json["problem"]
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in cardialign(*given, tmp_path / "file" / "x.safetensors").json["problem"]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
