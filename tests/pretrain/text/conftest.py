"""Report encoders: the one that ships, and a small one as a user would give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder(TextConfig())


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory, minilm: TextEncoder) -> Path:
    """A two-layer BERT with random weights, the tokenizer of MiniLM, and its pooling: as a user would give."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "small-bert"
    torch.manual_seed(0)
    vocabulary = minilm.model_config["vocab_size"]
    BertModel(
        BertConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder / name, folder / name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
