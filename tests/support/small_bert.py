"""A report encoder as a user would give it, small enough to train in a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder


def write_small_bert(folder: Path, dropout: float = 0.1, width: int = 16) -> Path:
    """A two-layer BERT with random weights, the tokenizer of MiniLM, and its pooling."""
    from transformers import BertConfig, BertModel

    minilm = TextEncoder(TextConfig())
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=minilm.model_config["vocab_size"],
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder / name, folder / name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


T5_WORDS = ("sinus", "rhythm", "normal", "ecg", "atrial", "fibrillation", "left", "bundle", "branch", "block")


def write_small_t5(folder: Path, sentinels: int = 2, words: Sequence[str] = T5_WORDS, width: int = 16) -> Path:
    """A two-layer T5 with random weights, and a tokenizer of these words (lower case) that has sentinels and no mask
    token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(sentinels))]
    known = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(known), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
    ).save_pretrained(folder)
    return folder
