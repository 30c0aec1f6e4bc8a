"""`text-bank stats`, `shards leakage` and protocols by command.

They print what the floors below found, with what to do next.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cardialign.cluster.main import build_parser
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.text.folder import encoder_folder
from cardialign.pretrain.training.data import open_bank
from tests.support.hashing_encoder import HashingEncoder

Call = Callable[..., Any]


def test_statistics_advise_against_raw_cosine_and_give_lines_that_a_recipe_takes(
    cardialign: Call, shards: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("text_bank")))
    missing = cardialign("text-bank", "stats", folder)
    assert missing.code == 1 and "text-bank build" in missing.json["remedy"]
    build_text_bank(ShardSet.open(folder), HashingEncoder())
    answer = cardialign("text-bank", "stats", folder, "--global-batch", 16, 9999)
    assert answer.code == 0 and "raw cosine is useless" in answer.json["advice"] and "0.835" in answer.json["advice"]
    assert f"{answer.json['raw']['mean']:.3f}" in answer.json["advice"]
    assert answer.json["left_out"] == [f"global batch 9999: only {answer.json['records']} records"]
    for name, lines in answer.json["yaml"].items():
        config = parse_config(yaml.safe_load("\n".join(lines)))
        assert config.method.similarity == name and config.method.low < config.method.high
    printed = cardialign("text-bank", "stats", folder, "--global-batch", 16, plain=True).out
    assert "raw cosine is useless" in printed and "  low: " in printed and "effective negatives: " in printed


def test_leakage_between_parts_fails_the_command_and_names_examples(cardialign: Call, shards: Path) -> None:
    clean = cardialign("shards", "leakage", shards, shards, "--split-a", "train", "--split-b", "val")
    assert clean.code == 0 and clean.json["leaked"] is False and clean.json["same_waveforms"] == 0
    leaked = cardialign("shards", "leakage", shards, shards, "--split-b", "val", plain=True)
    assert leaked.code == 1 and "LEAKED" in leaked.out and "in b is" in leaked.out and "  - patient " in leaked.out


def test_protocols_by_command_say_what_they_expect(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    words = ("evaluate", "zero-shot", "--encoder", tmp_path, "--shards", shards)
    other_data = cardialign(*words, "--protocol", "clean-v1:ptb-xl-super")
    assert other_data.code == 2 and "was built from mimic-iv-ecg" in other_data.json["problem"]
    unknown = cardialign(*words, "--protocol", "clean-v9:x")
    assert unknown.code == 2 and "merl-v1" in unknown.json["remedy"]
    folds = cardialign(*words, "--protocol", "clean-v1:ptb-xl-super", "--folds", "1-3")
    assert folds.code == 2 and "--split" in folds.json["remedy"]
    assert cardialign(*words, "--prompts", "virtual-findings-v1", "--label-files", tmp_path).code == 2


@pytest.mark.slow
def test_a_folder_that_does_not_say_how_it_pools_is_told_so(
    cardialign: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    minilm, folder = encoder_folder("minilm"), tmp_path / "medcpt"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=30522, **small)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm / name, folder / name)
    copy = shutil.copytree(shards, tmp_path / "shards")
    silent = cardialign("text-bank", "build", copy, "--encoder", folder)
    assert silent.code == 1 and "does not say how" in silent.json["problem"] and "--pooling" in silent.json["remedy"]
    made = cardialign("text-bank", "build", copy, "--encoder", folder, "--pooling", "cls")
    assert made.code == 0
    bank = json.loads((Path(made.json["path"]) / "bank.json").read_text())
    assert bank["encoder"]["pooling"] == "cls"
    answer = cardialign("text-bank", "stats", copy, "--encoder", folder, "--pooling", "cls", "--global-batch", "8")
    assert answer.code == 0 and answer.json["bank"] == made.json["path"]


@pytest.mark.parametrize("recipe", ["cardialign-tiny", "melp", "d-beta"])
def test_a_run_without_its_bank_names_the_command_that_makes_that_bank(
    recipe: str, shards: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(shards, tmp_path / "two words", ignore=shutil.ignore_patterns("text_bank"))
    config = load_config(recipe, [f"data.shards={json.dumps(str(bare))}"])
    with pytest.raises(UserError, match="no text bank of") as missing:
        open_bank(config)
    words = shlex.split(missing.value.remedy.partition("cardialign ")[2])
    args = build_parser("text-bank build").parse_args(words)
    asked, text = (args.encoder, args.pooling, args.max_tokens, args.style), config.text
    assert asked == (text.encoder, text.pooling, text.max_tokens, text.style) and args.shards == bare
    assert (args.distant or 0) == config.method.distant_reports
