"""`cardialign prompts`: what stands for which class can be read without opening a file of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.data_shards.record import STANDARD_LEADS
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
