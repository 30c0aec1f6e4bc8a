"""SCAR-R: a reconstruction of SCAR (Liu et al. 2026, arXiv 2604.01498), of which only the abstract is public to us.

An adversary removes the patches by which ECG and report find each other; the encoder learns to do with what is left,
and a selector to weigh it. Everything beyond the abstract (factors, budgets, weights, the selector's target) is ours.

    s_lt = a_l + b_t + c_lt                               the masker, on 12 leads x stretches of time
    m~   = sigmoid((s + g1 - g2 + log(rho / (1 - rho))) / tau_g),   g Gumbel, m = 1 for the k = round(rho N) highest
    w    = softmax over what is left of u(h),    z = P sum_k w_k h_k      the selector: `encoder.pooling: selector`
    L_full = align(z_full, t)    L_mask = align(z_mask, t)    L_cons = 1 - cos(z_mask, sg(z_full))
    L_sel  = KL(q || w),         q_k = softmax of cos(P h_k, t) / tau_q, no gradient; of both passes, averaged
    encoder, selector:  min L_full + L_mask + .5 L_cons + .1 L_sel
    masker:             max L_aim - 1.0 (mean m~ - rho)^2 - .05 mean |m~_{l,t+1} - m~_{l,t}|
    L_aim  = mean_i z_mask,i.(mean_j t_j - t_i) / tau  (`aim: margin`, ours), or L_mask (`loss`)

Removed patches are left out of attention; they are not zeros. At steps that teach the masker they stay, as keys of
weight 0 (`weigh_keys`, and so in the selector), which is the same but for 1e-6. The hard decision is straight-through:
the gradient at the weights, 1 of what is kept and 0 of what is removed, is the masker's, reversed.
Ours: values are not scaled by the weight as well. What is removed would then have no gradient, and what is kept has
none to speak of: an encoder that weighs its keys well gains nothing from more of one that is there.
Until step `begins` everything is masked at random: what disturbs an encoder that knows nothing is not what it reads by.
Ours: the margin. L_mask counts most where reports are confused anyhow; both aims find the primary evidence of virtual
patients, once logits have a fixed spread (`masker`). With logits that could grow it was found less than by chance.
What is missing tells of the report, too, once a masker has learnt: an encoder reads that. Random masks of whole leads
(`random_share`) make absence less of a proof, and do not undo it.
With `turns: alternate` one step teaches the encoder and the next the masker (`learning_rates`); the loss that is told
is the same at both. With `reversal` both learn at every step, and the masker works against L_cons and L_sel, too.
Legend: b records, n patches per lead, N = 12 n, D token width, E embedding_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, siglip, weighted_infonce
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.encoders.blocks.pooling import SelectorPool
from cardialign.pretrain.encoders.vit1d import Patches, Vit1d
from cardialign.pretrain.methods.base import Chance, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.logit_scale import LogitScale
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, retrieval_top1
from cardialign.pretrain.methods.scar import losses
from cardialign.pretrain.methods.scar.config import ScarConfig
from cardialign.pretrain.methods.scar.masker import Masker, Removal, exact, logistic_noise, random_scores, remove
from cardialign.pretrain.methods.siglip import one_logit_for_all

LEADS = len(STANDARD_LEADS)
LOWEST = -1e9
"""Below every logit."""
PLAYERS = ("ecg.", "text.", "logit_")
"""Beginnings of the names of all parameters that are not the masker's."""


class _View(NamedTuple):
    """What one pass makes of what it saw: embedding float32 (b, E) unit rows, the selection loss (b,), tokens (b, N, D)
    after the encoder's transformer."""

    embedding: Tensor
    selection: Tensor
    tokens: Tensor


class Scar(TwoTowers):
    """`method.name: scar`.

    Inputs besides both towers':
    report_key   int64 (b,); similarity float32 (b, d_s) for `diagsim`.
    share        float32 (b,), what is to be removed.
    by_chance    bool (b,), records that are masked at random, by random_scores float32 (b, N).
    noise        float32 (b, N), logistic; cooling float32 (b,), the temperature of the soft decisions; reads bool (b,),
                 whose report the masker sees. None of the three without a masker.
    plays        bool (b,), only at steps that teach the masker.
    Raises UsageError for another encoder than vit1d with lead-wise patches and a selector.
    """

    Config: ClassVar[type[MethodConfig]] = ScarConfig

    ecg: Vit1d

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, ScarConfig)
        self.config, self.global_batch = method, config.training.global_batch
        if not isinstance(self.ecg, Vit1d) or not self.ecg.per_lead or not isinstance(self.ecg.pool, SelectorPool):
            raise UsageError(
                f"method scar removes patches of single leads and weighs what is left, encoder {config.encoder.name} "
                "does not as it is set",
                "set encoder.name to vit1d, encoder.patches to lead and encoder.pooling to selector",
            )
        self.patches = spec.samples // self.ecg.patch_samples
        self.logit_scale = LogitScale(method.temperature, method.temperature_min, method.temperature_max, learn=True)
        if method.align == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor([method.bias]))
        if method.masker is not None:
            self.masker = Masker(method.masker, self.ecg.token_width, config.encoder.embedding_dim)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is not None
        method, masker = self.config, self.config.masker
        low, high = method.removed
        alone = masker is None or draws.step < masker.begins
        by_chance = draws.uniform("by chance") < (1.0 if alone else method.random_share)
        inputs = {
            **super().inputs(batch, bank, draws),
            "report_key": torch.from_numpy(np.array(bank.report_keys(batch.report), dtype=np.int64)),
            "share": torch.from_numpy((low + (high - low) * draws.uniform("share")).astype(np.float32)),
            "by_chance": torch.from_numpy(by_chance),
            "random_scores": random_scores(draws, self.patches),
        }
        if method.align == "diagsim":
            features = np.ascontiguousarray(bank.similarity_features(batch.report, None), dtype=np.float32)
            inputs["similarity"] = torch.from_numpy(features)
        if masker is not None:
            first, last = masker.relaxation
            cooling = first * (last / first) ** min(1.0, max(0, draws.step - masker.begins) / masker.relaxation_steps)
            rows = len(batch.rows)
            inputs |= {
                "noise": logistic_noise(draws, self.patches),
                "cooling": torch.full((rows,), cooling),
                "reads": torch.from_numpy(draws.uniform("reads") < masker.reads_report),
            }
            if draws.step >= masker.begins and (masker.turns == "reversal" or self._is_maskers(draws.step)):
                inputs["plays"] = torch.ones(rows, dtype=torch.bool)
        return inputs

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg, masked and text (b, E), log_scale (1,), bias (1,) for `sigmoid`; consistency, selection and,
        with a masker, budget and smoothness (b, 2), sums and counts; removed (b, 13, 2), the same of each lead and of
        the whole, of the masker's records where there is one.
        """
        text = self.text(inputs.get("text_embedding"), inputs.get("token_ids"), inputs.get("token_mask"))
        patches = self.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
        assert patches.mask is not None
        recorded = patches.mask
        whole = self._view(patches, text)
        removal, keep = self._removal(patches, whole.tokens, text, inputs)
        masked = self._view(patches, text, removal.removed, keep)
        features = {
            "ecg": whole.embedding,
            "masked": masked.embedding,
            "text": text,
            "log_scale": self.logit_scale(),
            "consistency": _counted(losses.consistency(masked.embedding, whole.embedding)),
            "selection": _counted((whole.selection + masked.selection) / 2),
            "removed": self._removed(removal, recorded, inputs["by_chance"]),
        }
        if self.config.masker is not None:
            own = ~inputs["by_chance"]
            features["budget"] = _counted(losses.budget(removal.relaxed, recorded, removal.taken), own)
            features["smoothness"] = _counted(losses.roughness(removal.relaxed, recorded, LEADS), own)
        if self.config.align == "sigmoid":
            features["bias"] = self.logit_bias.float()
        return features

    def _view(self, patches: Patches, text: Tensor, removed: Tensor | None = None, keep: Tensor | None = None) -> _View:
        """What is left where `removed` bool (b, N) is taken away, or counts keep (b, N), which is 0 there."""
        pool, recorded = self.ecg.pool, patches.mask
        assert isinstance(pool, SelectorPool) and recorded is not None
        visible = recorded if removed is None else recorded & ~removed
        there = visible if keep is None else recorded
        tokens = self.ecg.encode_patches(patches._replace(mask=there), keep)
        log_weights = pool.log_weights(tokens, there, keep)
        projected = self.ecg.projection(pool.pooled(tokens, there, log_weights))
        embedding = F.normalize(exact(projected), dim=-1)
        with torch.no_grad():
            words = self.ecg.projection(tokens)
        temperature = self.config.target_temperature
        return _View(embedding, losses.selection(log_weights, words, text, visible, temperature), tokens)

    def _removal(
        self, patches: Patches, encoded: Tensor, text: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[Removal, Tensor | None]:
        """What is removed; and where the masker learns how much each patch counts: 1, or 0, with its gradient.

        encoded (b, N, D): the whole record's tokens after the transformer.
        """
        recorded, share, by_chance = patches.mask, inputs["share"], inputs["by_chance"]
        assert recorded is not None
        if self.config.masker is None:
            return remove(inputs["random_scores"], recorded, share, torch.ones_like(share)), None
        shown = torch.where(inputs["reads"][:, None], text, 0.0)
        logits = self.masker(self._seen(patches, encoded), patches.seconds, recorded, shown)
        scores = torch.where(by_chance[:, None], inputs["random_scores"], logits + inputs["noise"])
        removal = remove(scores, recorded, share, inputs["cooling"])
        if "plays" not in inputs:
            return removal, None
        # Descent on the loss would have the masker raise the weight 1 - m~ of what helps: the sign is turned.
        return removal, (~removal.removed).to(logits.dtype) + (removal.relaxed - removal.relaxed.detach())

    def _seen(self, patches: Patches, encoded: Tensor) -> Tensor:
        """What the masker reads, (b, N, D); the encoder gets no gradient from it."""
        assert self.config.masker is not None
        return encoded if self.config.masker.sees == "encoded" else patches.tokens

    def removal_logits(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """How gladly the masker removes each patch, without noise and unread: float32 (b, 12, n); the lowest of all
        where nothing was recorded.
        """
        patches = self.ecg.embed_patches(signal, lead_mask, valid_samples)
        assert patches.mask is not None
        seen = self._seen(patches, self.ecg.encode_patches(patches))
        logits = self.masker(seen, patches.seconds, patches.mask)
        return logits.masked_fill(~patches.mask, LOWEST).unflatten(1, (LEADS, -1))

    def _removed(self, removal: Removal, recorded: Tensor, by_chance: Tensor) -> Tensor:
        """(removed, recorded) tokens of each lead, and of the record: float32 (b, 13, 2)."""
        chosen = recorded if self.config.masker is None else recorded & ~by_chance[:, None]
        pairs = torch.stack([removal.removed & chosen, chosen], dim=-1).float().unflatten(1, (LEADS, -1)).sum(dim=2)
        return torch.cat([pairs, pairs.sum(dim=1, keepdim=True)], dim=1)

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; full_loss, masked_loss, consistency, selection, budget, smoothness, its terms without their
        weights; margin, what a masker of that aim lowers; temperature; retrieval_top1 (of this rank's records);
        removed, the share of recorded tokens that was removed, and removed_I to removed_V6 of each lead.
        """
        method = self.config
        whole, chance = self._align(features["ecg"], features, inputs, group)
        masked, _ = self._align(features["masked"], features, inputs, group)
        terms = {"full_loss": whole, "masked_loss": masked}
        if method.masker is not None and method.masker.aim == "margin":
            terms["margin"] = self._margin(features, group)
        terms |= {
            name: mean_over_batch(features[name], group)
            for name in ("consistency", "selection", "budget", "smoothness")
            if name in features
        }
        weights = {"full_loss": 1.0, "masked_loss": method.masked}
        weights |= {"consistency": method.consistency, "selection": method.selection}
        if method.masker is not None:
            weights |= {"budget": method.masker.budget, "smoothness": method.masker.smoothness}
        loss = sum((weight * terms[name] for name, weight in weights.items()), torch.zeros((), device=whole.device))
        if "margin" in terms:  # what the masker lowers, by the gradient that `_removal` turns: no part of the loss told
            weights["margin"] = -float(features["log_scale"].detach().exp())
        if method.masker is not None and method.masker.turns == "alternate":
            loss = loss.detach() + _of_the_turn(terms, weights, "plays" in inputs)
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics |= {"loss": loss.detach(), "temperature": torch.exp(-features["log_scale"].detach()).squeeze()}
        metrics |= _shares(features["removed"], group)
        if len(ecg := features["ecg"].detach()):
            metrics["retrieval_top1"] = retrieval_top1(ecg, features["text"].detach(), inputs["report_key"])
        return StepLoss(loss, metrics, self._chance(chance, loss, terms))

    def _margin(self, features: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> Tensor:
        """How much nearer records of which parts are removed are to their own report than to the mean of all: ()."""
        text = exact(features["text"].detach())
        total = F.pad(text, (0, 1), value=1.0).double().sum(dim=0)
        if dist.is_initialized():
            dist.all_reduce(total, group=group)
        each = losses.margin(features["masked"], text, (total[:-1] / total[-1]).to(text.dtype))
        return mean_over_batch(_counted(each), group)

    def _align(
        self,
        ecg: Tensor,
        features: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Chance | None]:
        """L_align of ECGs and reports, and what a model that sees nothing would have."""
        method, text, log_scale = self.config, features["text"], features["log_scale"]
        execution = Execution(group=group, chunk=method.chunk, scheme=method.scheme)
        key = inputs["report_key"]
        if method.align == "sigmoid":
            loss = siglip(ecg, text, log_scale, features["bias"], execution=execution)
            return loss, one_logit_for_all(self.global_batch)
        if method.align == "diagsim":
            similarity = Similarity("cosine", inputs["similarity"], key)
            weights = NegativeWeights("ramp", method.low, method.high, drop_duplicates=method.drop_duplicates)
        else:
            similarity = Similarity("none", None, key)
            weights = NegativeWeights("none", drop_duplicates=method.drop_duplicates)
        output = weighted_infonce(ecg, text, log_scale, similarity, weights, execution)
        return output.loss, Chance(math.log1p(float(output.effective_negatives)), "ln(1 + effective negatives)")

    def _chance(self, of_one: Chance | None, loss: Tensor, terms: Mapping[str, Tensor]) -> Chance | None:
        """Both passes at chance, and every other term as it is."""
        if of_one is None:
            return None
        weight = self.config.masked
        others = float(loss.detach() - terms["full_loss"].detach() - weight * terms["masked_loss"].detach())
        return Chance((1 + weight) * of_one.loss + others, f"{1 + weight:g} x {of_one.formula} + the other terms")

    def learning_rates(self, step: int) -> Mapping[str, float]:
        masker = self.config.masker
        if masker is None:
            return {}
        if masker.turns == "reversal":
            return {"masker.": masker.learning_rate if step >= masker.begins else 0.0}
        own = self._is_maskers(step)
        return {"masker.": masker.learning_rate if own else 0.0, **dict.fromkeys(PLAYERS, 0.0 if own else 1.0)}

    def masker_steps(self, steps: int) -> int:
        """In how many of the first `steps` steps of a run the masker learns."""
        masker = self.config.masker
        if masker is None or steps <= masker.begins:
            return 0
        return steps - masker.begins if masker.turns == "reversal" else steps // 2 - masker.begins // 2

    def _is_maskers(self, step: int) -> bool:
        """Whether a step is the masker's, where the players take turns."""
        masker = self.config.masker
        return masker is not None and step >= masker.begins and step % 2 == 1


def _of_the_turn(terms: Mapping[str, Tensor], weights: Mapping[str, float], maskers: bool) -> Tensor:
    """0, with the gradient of this step: at the masker's, that of what it aims at and of its own bounds, and at the
    encoder's, that of all others. L_full, which no masker can move, has it at both: optimizers remember gradients.
    """
    own = {"full_loss", "margin" if "margin" in terms else "masked_loss", "budget", "smoothness"}
    others = weights.keys() - {"margin", "budget", "smoothness"}
    moving = [weights[name] * (terms[name] - terms[name].detach()) for name in sorted(own if maskers else others)]
    return torch.stack(moving).sum()


def _counted(values: Tensor, rows: Tensor | None = None) -> Tensor:
    """(sum, count) of each row: float32 (b, 2); rows bool (b,): others count nothing."""
    count = torch.ones_like(values) if rows is None else rows.to(values.dtype)
    return torch.stack([values * count, count], dim=1)


def _shares(pairs: Tensor, group: dist.ProcessGroup | None) -> Tensors:
    """Pairs (b, 13, 2) of this rank's rows -> share of the global batch by lead and in all, where anything counts."""
    total = pairs.detach().double().sum(dim=0)
    if dist.is_initialized():
        dist.all_reduce(total, group=group)
    share = (total[:, 0] / total[:, 1].clamp_min(1)).float()
    return dict(zip([*(f"removed_{lead}" for lead in STANDARD_LEADS), "removed"], share, strict=True))
