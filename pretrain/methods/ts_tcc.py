"""TS-TCC (Eldele et al. 2021): what was heard of one view tells what comes in the other, and finds its context.

No reports. Of every record a weak and a strong view, z_t the unit vectors of their tokens; c, a transformer's summary
of z_1 to z_t of one view, foretells the other view at t + 1 to t + K among the records n of the global batch:

    TC = mean over records i and k of -log  e^{W_k c_i . z'_i,t+k} / sum_n e^{W_k c_i . z'_n,t+k}
    CC = NT-Xent of the projected contexts of both views, as in SimCLR
    L  = lambda_1 (TC of weak to strong + TC of strong to weak) + lambda_2 CC
A record with no K tokens to foretell has no part in TC.

Published: K = 6 or 10, a transformer of 100 numbers, 4 layers, 4 heads, 64 hidden units, tau 0.2, lambda 1 and 0.7;
weak: amplitude; strong: up to 8 pieces exchanged, then noise. Ours: t is drawn for each record and view, not for a
batch; rotary positions, hence 96 numbers; no dropout; LayerNorm in the projector; GELU; the ranges of the views. The
released program's TC takes its softmax over the c of all records, this is the text's formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.pretrain.config import Depth, MethodConfig, Positive, RunConfig, Temperature, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.resnet1d import ResNet1d
from cardialign.pretrain.methods.base import Chance, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.gathering import gathered
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_views import VIEWS, Head, HeadsConfig, TwoViews
from cardialign.pretrain.methods.parts.views import ViewsConfig

STILL = ViewsConfig.still()
Weight = Annotated[float, Field(ge=0, le=1e3)]


class TsTccConfig(HeadsConfig):
    """views: how far the weak view may go; strong: how far the other one.

    steps: K, tokens that are foretold; width, depth, heads, hidden: of the transformer; projection_dim: of a context.
    """

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "ts_tcc"
    views: ViewsConfig = ViewsConfig.model_validate({**STILL, "scale": 2.0})
    strong: ViewsConfig = ViewsConfig.model_validate({**STILL, "pieces": 8, "noise_mv": 0.1})
    steps: Annotated[int, Field(ge=1, le=1000)] = 6
    width: Width = 96
    depth: Depth = 4
    heads: Depth = 4
    hidden: Width = 64
    projection_dim: Width = 32
    temperature: Temperature = 0.2
    temporal: Weight = 1.0
    contextual: Weight = 0.7
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TsTccConfig:
        refuse(head_problems(self.width, self.heads))
        return self


class TsTcc(TwoViews):
    """`method.name: ts_tcc`.

    Raises UsageError for another encoder than resnet1d, whose tokens alone are of a stretch of time, and for a record
    of too few tokens. Legend: b records, N tokens, D their width, K steps.
    """

    Config: ClassVar[type[MethodConfig]] = TsTccConfig

    ecg: ResNet1d
    log_scale: Tensor

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, TsTccConfig)
        if not isinstance(self.ecg, ResNet1d):
            raise UsageError(
                f"method ts_tcc foretells tokens, those of encoder {config.encoder.name} have seen the whole record",
                "set encoder.name to resnet1d",
            )
        self.config = method
        self.stride = 32 if self.ecg.stem.max_pool else 16
        tokens = -(-spec.samples // self.stride)
        if tokens <= method.steps:
            raise UsageError(
                f"method.steps {method.steps} looks beyond the {tokens} tokens of a record",
                f"set it to {max(1, tokens - 1)} or less",
            )
        D, d = self.ecg.token_width, method.width
        self.to_summary = nn.Linear(D, d)
        self.summary_token = nn.Parameter(torch.randn(1, d) * 0.02)
        self.summary = TemporalEncoder(d, method.depth, method.heads, method.hidden / d, 0.0, 0.0)
        self.ahead = nn.ModuleList(nn.Linear(d, D) for _ in range(method.steps))
        self.projector = Head([d, D // 2, method.projection_dim], method.norm)
        self.register_buffer("log_scale", torch.tensor([-math.log(method.temperature)]), persistent=False)

    def views_of(self, view: str) -> ViewsConfig:
        return self.config.views if view == VIEWS[0] else self.config.strong

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """As of every method of two views; t int64 (b, 2), the last token heard of each view, and there bool (b,): K
        tokens follow it in both."""
        made = super().inputs(batch, bank, draws)
        lengths = np.minimum(*(made[f"{view} length"].numpy() for view in VIEWS))
        recorded = np.where(batch.lead_mask.any(axis=1), -(-lengths // self.stride), 0)
        choices = recorded - self.config.steps
        t = np.floor(draws.uniform("last heard", 2) * choices.clip(1)[:, None]).astype(np.int64)
        return {**made, "t": torch.from_numpy(t), "there": torch.from_numpy(choices > 0)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of the weak view; guesses and tokens float32 (b, 2, K, D), the W_k c of each
        view and the tokens of the other one that they foretell; contexts (b, 2, projection_dim), unit vectors.
        """
        seen = [self.seen(inputs, view, tokens=True) for view in VIEWS]
        z = [F.normalize(self._tokens(each.tokens), dim=-1) for each in seen]
        c = [self._summary(z[v], inputs["t"][:, v]) for v in range(2)]
        guesses = [torch.stack([guess(each) for guess in self.ahead], dim=1).float() for each in c]
        steps = torch.arange(1, self.config.steps + 1, device=z[0].device)
        wanted = []
        for v in range(2):
            places = (inputs["t"][:, v, None] + steps).clamp_max(z[v].shape[1] - 1)
            wanted.append(z[1 - v].gather(1, places[..., None].expand(-1, -1, z[v].shape[2])))
        contexts = F.normalize(torch.stack([self.projector(each).float() for each in c], dim=1), dim=-1)
        return {
            "ecg": seen[0].embedding,
            "guesses": torch.stack(guesses, dim=1),
            "tokens": torch.stack(wanted, dim=1),
            "contexts": contexts,
        }

    @staticmethod
    def _tokens(tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32))

    def _summary(self, z: Tensor, t: Tensor) -> Tensor:
        """Tokens (b, N, D), the first t + 1 of which are heard -> c (b, width)."""
        small = self.to_summary(z.to(self.to_summary.weight.dtype))
        token = self.summary_token.to(small.dtype).expand(len(small), 1, -1)
        places = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
        heard = torch.cat([torch.ones_like(places[:, :1], dtype=torch.bool), places <= t[:, None]], dim=1)
        seconds = torch.cat([t[:, None], places], dim=1) * (self.stride / self.ecg.sampling_rate)
        summarised: Tensor = self.summary(torch.cat([token, small], dim=1), seconds, heard)
        return summarised[:, 0]

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; temporal, both TC; contextual, CC."""
        guesses, there = features["guesses"], inputs["there"]
        tokens, first = gathered(features["tokens"], group)
        present = gathered(there.long(), group)[0].bool()
        own = torch.arange(first, first + len(guesses), device=guesses.device)
        logits = torch.einsum("bvkd,nvkd->bnvk", guesses, tokens)
        logits = logits.masked_fill(~present[:, None, None], torch.finfo(logits.dtype).min)
        errors = F.cross_entropy(logits, own[:, None, None].expand(-1, *logits.shape[2:]), reduction="none")
        of_rows = torch.where(there, errors.mean(dim=2).sum(dim=1), 0.0)
        temporal = mean_over_batch(torch.stack([of_rows, there.to(of_rows)], dim=1), group)
        weak, strong = features["contexts"].unbind(dim=1)
        output = weighted_infonce(
            torch.cat([weak, strong]),
            torch.cat([strong, weak]),
            self.log_scale,
            Similarity("none", None, inputs["row"].repeat(2)),
            NegativeWeights("none", drop_duplicates=True),
            Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme),
        )
        loss = self.config.temporal * temporal + self.config.contextual * output.loss
        blind = 2 * self.config.temporal * math.log(max(1, int(present.sum())))
        blind += self.config.contextual * math.log1p(float(output.effective_negatives))
        metrics = {"loss": loss.detach(), "temporal": temporal.detach(), "contextual": output.loss.detach()}
        return StepLoss(loss, metrics, Chance(blind, "2 temporal ln B + contextual ln(1 + effective negatives)"))
