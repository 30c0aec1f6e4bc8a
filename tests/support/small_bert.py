"""A report encoder as a user would give it, small enough to train in a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder


def write_small_bert(folder: Path) -> Path:
    """A two-layer BERT with random weights, 16 wide, the tokenizer of MiniLM, and its pooling."""
    from transformers import BertConfig, BertModel

    minilm = TextEncoder(TextConfig())
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=minilm.model_config["vocab_size"],
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder / name, folder / name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
