"""D-BETA (Pham et al. 2025): what is hidden of an ECG is found in its report and in what is left of it, and the other
way about; and whether the two belong together is learnt from reports that surely do not.

    L = L_MLM + L_MEM + L_ETM + L_ETS
    L_MLM = mean over hidden words w of            -log softmax(words(text_w))[w]
    L_MEM = mean over hidden, recorded tokens p of |decoded_p - target_p|^2 / recorded samples of p
    L_ETM = mean over records i of                 -log softmax(W [tanh(U ecg_i0) ; tanh(V text_i0)])[y_i]
    L_ETS = -1/B^2 sum_ij log sigmoid(y_ij x_i.t_j),  y_ij = -1 for i != j, y_ii = 1, or -1 where y_i = 0
`hidden_tokens` of the ECG's tokens are taken out before the transformer, `hidden_words` of the report's words are
replaced by the mask token. Words and tokens are predicted from co-attention layers over both; x and t are the features
of each modality before them, tanh(linear(pooled)), not normalised. N3S: a record gets, by the chance `replaced`, one of
the `distant` reports that say the most different things; then y_i = 0. The report is replaced first and its words are
hidden afterwards (the published code discards the replaced report there). All means are over the global batch.

Zero-shot is the cosine of x and t, as published; `fused` is the logit of L_ETM instead.

Ours: each record is replaced by a chance of its own, not half of a batch; a chosen word is always replaced by the mask
token; the report's words attend to words alone (the published code passes no attention mask); the co-attention layers
are pre-norm; the decoder's positions are rotary, in seconds; t is pooled as `text.pooling` says, behind a LayerNorm;
samples that nobody recorded are asked of nobody, where the publication asks for zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, ets
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.encoders.conv_transformer import ConvTransformer
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.d_beta.config import DBetaConfig
from cardialign.pretrain.methods.d_beta.fusion import Fusion
from cardialign.pretrain.methods.d_beta.heads import UNASKED, TokenDecoder, WordHead, mask_token_of, vocabulary_of
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.scoring import COSINE, Scoring
from cardialign.pretrain.methods.parts.two_towers import batch_signals, report_inputs
from cardialign.pretrain.text.encoder import TextEncoder, pool
from cardialign.pretrain.text.tower import TanhHead, TextTower

LEADS = len(STANDARD_LEADS)
FUSED = "fused"


class Words(NamedTuple):
    """The special tokens of the report encoder, which are never hidden, the one that hides, and how many there are."""

    special: np.ndarray
    mask: int
    known: int


class DBeta(Method):
    """`method.name: d_beta`.

    Raises UsageError for an encoder without tokens to hide or with another pooler, and a share of hidden tokens that
    leaves none; UserError for a report encoder that has no token to hide words with.
    Legend: b records, N tokens of an ECG, M of them shown, K samples of a token, n words of a report, h hidden ones.
    """

    Config: ClassVar[type[MethodConfig]] = DBetaConfig
    head: ClassVar[type[TanhHead]] = TanhHead
    scorings: ClassVar[tuple[str, ...]] = (COSINE, FUSED)

    ecg: ConvTransformer

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, DBetaConfig)
        self.config, self.text_config = method, config.text
        _check(config, self.ecg)
        self.tokens = spec.samples // self.ecg.patch_samples
        self.shown = int(self.tokens * (1 - method.hidden_tokens))
        if self.shown < 1:
            raise UsageError(
                f"method.hidden_tokens {method.hidden_tokens:g} leaves none of the {self.tokens} tokens of a record",
                "lower it, or make shorter tokens (encoder.convolutions)",
            )
        encoder = TextEncoder(config.text)
        known = vocabulary_of(encoder)
        special = np.array(sorted(encoder.tokenizer.all_special_ids), dtype=np.int64)
        self.words = Words(special, mask_token_of(encoder, method.mask_token), known)
        self.text = TextTower(config.text, config.encoder.embedding_dim, TanhHead)
        self.fused = Fusion(method, self.ecg.token_width, encoder.dim)
        self.mlm = WordHead(method.width, known)
        self.mem = TokenDecoder(method, self.ecg.patch_samples * LEADS)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and

        kept        int64 (b, M), ascending: the tokens that are shown, recorded ones as long as there are any.
        hidden      bool (b, N): what is to be reconstructed: not shown, and recorded to its last sample.
        aligned     bool (b,): whether the report is the record's own.
        token_ids   int32 (b, n) of the report after words were hidden, token_mask bool (b, n).
        asked_at    int64 (b, h): the places of the hidden words; asked int64 (b, h): what they are, -100 for none.
        """
        assert bank is not None
        reports, aligned = self._reports(batch.report, bank, draws)
        text = report_inputs(bank, reports, self.text_config)
        rows = np.arange(len(reports))[:, None]
        complete = (np.arange(self.tokens) + 1) * self.ecg.patch_samples <= batch.valid_samples[:, None]
        order = (draws.uniform("shown tokens", self.tokens) + ~complete).argsort(axis=1, kind="stable")
        kept = np.sort(order[:, : self.shown], axis=1)
        hidden = complete.copy()
        hidden[rows, kept] = False
        return {
            **batch_signals(batch),
            "kept": torch.from_numpy(kept),
            "hidden": torch.from_numpy(hidden),
            "aligned": torch.from_numpy(aligned),
            **self._hide_words(text["token_ids"].numpy(), text["token_mask"].numpy(), draws),
        }

    def _reports(self, own: np.ndarray, bank: ReportBank, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Reports (b,) of which some were replaced, and bool (b,): which are the record's own."""
        if not self.config.replaced:
            return own, np.ones(len(own), dtype=bool)
        table = bank.distant(self.config.distant)
        if not table.shape[1]:
            raise DataError(
                "method d_beta replaces reports by others, and there is but one report",
                "train on a set with several reports, or set method.replaced to 0",
            )
        aligned = draws.uniform("replaced reports") >= self.config.replaced
        others = table[own, draws.integers("report instead", 0, table.shape[1])]
        return np.where(aligned, own, others).astype(np.int64), aligned

    def _hide_words(self, token_ids: np.ndarray, token_mask: np.ndarray, draws: Draws) -> Tensors:
        longest = token_ids.shape[1]
        chance = draws.uniform("hidden words", self.text_config.max_tokens)[:, :longest]
        chosen = token_mask & ~np.isin(token_ids, self.words.special) & (chance < self.config.hidden_words)
        most = max(1, int(chosen.sum(axis=1).max()))
        places = np.argsort(~chosen, axis=1, kind="stable")[:, :most]
        asked = np.where(np.take_along_axis(chosen, places, 1), np.take_along_axis(token_ids, places, 1), UNASKED)
        return {
            "token_ids": torch.from_numpy(np.where(chosen, self.words.mask, token_ids).astype(np.int32)),
            "token_mask": torch.from_numpy(token_mask),
            "asked_at": torch.from_numpy(places),
            "asked": torch.from_numpy(asked.astype(np.int64)),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg and text (b, embedding_dim) within -1..1, not normalised; mlm, mem, etm (b, 2): sums and
        numbers; right (b, 2): pairs that L_ETM tells rightly."""
        everything = self.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
        shown = everything.keep(inputs["kept"])
        encoded = self.ecg.encode_patches(shown)
        seen = torch.ones_like(inputs["kept"], dtype=torch.bool) if shown.mask is None else shown.mask
        pooled, tokens = self.ecg.pool_tokens(encoded, seen), encoded[:, -seen.shape[1] :]
        words, word_mask = self.text.states(inputs["token_ids"], inputs["token_mask"]), inputs["token_mask"]
        ecg_stream = torch.cat([pooled[:, None].to(tokens.dtype), tokens], dim=1)
        head = self.text.head
        assert isinstance(head, TanhHead)
        fused = self.fused.fuse(ecg_stream, F.pad(seen, (1, 0), value=True), words, word_mask)
        etm = F.cross_entropy(fused.aligned.float(), inputs["aligned"].long(), reduction="none")
        right = (fused.aligned.argmax(dim=1) == inputs["aligned"]).float()
        one = torch.ones_like(etm)
        return {
            "ecg": self.ecg.project(pooled),
            "text": head.features(pool(words, word_mask, self.text.pooling)),
            "mlm": self._word_errors(fused.text, inputs),
            "mem": self._token_errors(fused.early_ecg[:, 1:], everything.seconds, inputs),
            "etm": torch.stack([etm, one], dim=1),
            "right": torch.stack([right, one], dim=1),
        }

    def _word_errors(self, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        at, asked = inputs["asked_at"], inputs["asked"]
        logits = self.mlm(states.gather(1, at[..., None].expand(-1, -1, states.shape[2])))
        errors = F.cross_entropy(
            logits.float().transpose(1, 2), asked, ignore_index=UNASKED, reduction="none"
        )  # 0 where nothing is asked
        return torch.stack([errors.sum(1), (asked != UNASKED).sum(1).to(errors)], dim=1)

    def _token_errors(self, shown: Tensor, seconds: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        decoded = self.mem(shown, inputs["kept"], seconds).float()
        wanted = self._targets(inputs)
        leads = inputs["lead_mask"][:, None, :, None].to(decoded)  # of others nothing is asked
        errors = ((decoded.unflatten(2, (LEADS, -1)) - wanted).square() * leads).mean(dim=3).sum(dim=2)
        errors = errors / inputs["lead_mask"].sum(dim=1, keepdim=True).clamp_min(1) * inputs["hidden"]
        return torch.stack([errors.sum(1), inputs["hidden"].sum(1).to(errors)], dim=1)

    def _targets(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """float32 (b, N, 12, K)."""
        valid = inputs.get("valid_samples")
        values = self.ecg.patch_values(inputs["signal"], inputs["lead_mask"], valid).unflatten(2, (LEADS, -1))
        if self.config.target == "plain":
            return values
        recorded = inputs["lead_mask"][:, None, :, None].expand_as(values)
        if valid is not None:
            sample = torch.arange(values.shape[1] * values.shape[3], device=values.device)
            recorded = recorded & (sample < valid[:, None]).unflatten(1, (values.shape[1], -1))[:, :, None]
        axes = (1, 3) if self.config.target == "lead" else (2, 3)
        count = recorded.sum(dim=axes, keepdim=True).clamp_min(1)
        mean = (values * recorded).sum(dim=axes, keepdim=True) / count
        spread = ((values - mean).square() * recorded).sum(dim=axes, keepdim=True) / count
        return (values - mean) / (spread + 1e-6).sqrt()

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss and its four parts; etm_accuracy, the share of pairs that are told rightly: 0.5 is a guess
        where half of the reports are replaced."""
        parts = {name: mean_over_batch(features[name], group) for name in ("mlm", "mem", "etm")}
        parts["ets"] = ets(features["ecg"], features["text"], inputs["aligned"], Execution(group=group))
        loss = torch.stack(list(parts.values())).sum()
        accuracy = mean_over_batch(features["right"], group)
        told = {**parts, "loss": loss, "etm_accuracy": accuracy}
        return StepLoss(loss, {name: value.detach() for name, value in told.items()})

    @classmethod
    def scoring(cls, name: str, config: RunConfig, ecg: EcgEncoder) -> Scoring:
        assert name == FUSED and isinstance(config.method, DBetaConfig)
        return Fusion(config.method, ecg.token_width, TextEncoder(config.text).dim)


def _check(config: RunConfig, ecg: EcgEncoder) -> None:
    if not isinstance(ecg, ConvTransformer):
        raise UsageError(
            f"method d_beta hides tokens of convolutions, encoder {config.encoder.name} has none",
            "set encoder.name to conv_transformer",
        )
    if ecg.pooler != "tanh":
        raise UsageError(
            f"method d_beta compares tanh-pooled features, encoder.pooler is {ecg.pooler}",
            "set encoder.pooler to tanh",
        )
