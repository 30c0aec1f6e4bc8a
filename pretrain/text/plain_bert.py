"""BERT's operators (Devlin et al. 2019) without the library that knows its weights: for counting under `meta`.

Importing transformers takes longer than counting what a model of it costs. The names of the weights are those of its
`BertModel`, the operators those that it runs, so that sizes, FLOPs and blocks are the same. A `config.json` that says
anything else is left to transformers. Legend: n texts, N tokens, d width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
"""What `config.json` may leave out: those of BERT base."""
ONE_VALUE: Mapping[str, Any] = {
    "model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "gradient_checkpointing": False,
    "is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0,
    "torch_dtype": "float32", "dtype": "float32", "output_attentions": False, "output_hidden_states": False,
}  # fmt: skip
"""Keys with the one value that this module knows."""
WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "bos_token_id", "classifier_dropout", "directionality", "eos_token_id",
    "finetuning_task", "id2label", "initializer_range", "label2id", "model_max_length", "tie_word_embeddings",
    "tokenizer_class", "transformers_version", "use_cache",
}  # fmt: skip


class Output(NamedTuple):
    """last_hidden_state: what the encoder makes of each token, (n, N, d)."""

    last_hidden_state: Tensor


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says a BERT that is this one, and nothing that is not known here."""
    if config.get("model_type") != "bert":
        return False
    sizes = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS}}
    others = {key: value for key, value in config.items() if key not in DEFAULTS and key not in WITHOUT_EFFECT}
    return (
        all(type(sizes[key]) in (int, type(DEFAULTS[key])) and sizes[key] >= 0 for key in DEFAULTS)
        and all(sizes[key] > 0 for key in ("hidden_size", "num_attention_heads", "max_position_embeddings"))
        and sizes["hidden_size"] % sizes["num_attention_heads"] == 0
        and sizes["pad_token_id"] < sizes["vocab_size"]
        and max(sizes["hidden_dropout_prob"], sizes["attention_probs_dropout_prob"]) <= 1
        and all(key in ONE_VALUE and value == ONE_VALUE[key] for key, value in others.items())
    )


class PlainBert(nn.Module):
    """Token ids and mask -> states (n, N, d). `config` is one that `is_plain`; weights are whatever PyTorch draws."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        sizes = {**DEFAULTS, **config}
        self.embeddings = _Embeddings(sizes)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(sizes) for _ in range(sizes["num_hidden_layers"]))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(sizes["hidden_size"], sizes["hidden_size"])})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """attention_mask: (n, N), or bool (n, 1, N, N), who sees whom."""
        states = embedded = self.embeddings(input_ids)  # the library, too, has them in hand to the end
        seen = attention_mask
        if seen.ndim == 2:
            queries = torch.arange(input_ids.shape[1], device=seen.device)[None, None, :, None] >= 0
            seen = queries & seen.bool()[:, None, None, :]
        for layer in self.encoder["layer"].children():
            states = layer(states, seen)
        torch.tanh(self.pooler["dense"](states[:, 0]))  # as the library does, though nobody reads it
        del embedded
        return Output(states)


class _Embeddings(nn.Module):
    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, positions = sizes["hidden_size"], sizes["max_position_embeddings"]
        self.word_embeddings = nn.Embedding(sizes["vocab_size"], width, padding_idx=sizes["pad_token_id"])
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(sizes["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=sizes["layer_norm_eps"])
        self.dropout = nn.Dropout(sizes["hidden_dropout_prob"])
        self.position_ids = nn.Buffer(torch.arange(positions)[None], persistent=False)
        self.token_type_ids = nn.Buffer(torch.zeros(1, positions, dtype=torch.long), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_ids[:, : ids.shape[1]]
        kinds = torch.gather(self.token_type_ids, 1, places).expand(ids.shape)
        states = self.word_embeddings(ids) + self.token_type_embeddings(kinds)
        states = states + self.position_embeddings(places)
        found: Tensor = self.dropout(self.LayerNorm(states))
        return found


class _SelfAttention(nn.Module):
    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.dropped, width = (
            sizes["num_attention_heads"], sizes["attention_probs_dropout_prob"], sizes["hidden_size"],
        )  # fmt: skip
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            part(states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=self.dropped if self.training else 0.0)
        return mixed.transpose(1, 2).contiguous().flatten(2)


class _Joined(nn.Module):
    """What a part of a layer made, brought to width d and added to what went into it."""

    def __init__(self, sizes: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, sizes["hidden_size"])
        self.LayerNorm = nn.LayerNorm(sizes["hidden_size"], eps=sizes["layer_norm_eps"])
        self.dropout = nn.Dropout(sizes["hidden_dropout_prob"])

    def forward(self, made: Tensor, states: Tensor) -> Tensor:
        made = self.dense(made)
        made = self.dropout(made)
        found: Tensor = self.LayerNorm(made + states)
        return found


class _Layer(nn.Module):
    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = sizes["hidden_size"], sizes["intermediate_size"]
        self.attention = nn.ModuleDict({"self": _SelfAttention(sizes), "output": _Joined(sizes, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _Joined(sizes, inner)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        states = self.attention["output"](self.attention["self"](states, seen), states)
        return self._fed(states)

    def _fed(self, states: Tensor) -> Tensor:
        inner = self.intermediate["dense"](states)
        inner = F.gelu(inner)
        found: Tensor = self.output(inner, states)
        return found
