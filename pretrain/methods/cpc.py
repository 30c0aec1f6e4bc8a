"""CPC (van den Oord et al. 2018): what was heard so far tells, among places of the record, which one comes next.

No reports. Token z_t is of one stretch of time; c_t is the state of a causal encoder, which has heard z_1 to z_t. For
every t and every k up to `steps` the token k places on is told from `negatives` places of the same record:

    L_tk = -log  e^{c_t W_k z_{t+k}} / (e^{c_t W_k z_{t+k}} + sum over places n != t+k of e^{c_t W_k z_n})
    L    = mean of L_tk over all records, t and k of the global batch for which t and t+k are recorded

Ours: the negatives of a record are drawn once a step, with replacement, for all its t and k; a place that is the
one asked for is left out. The encoder is the S4 that hears forwards alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.encoders.s4 import S4Encoder
from cardialign.pretrain.methods.base import Chance, Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import batch_signals


class CpcConfig(MethodConfig):
    """steps: how many tokens ahead are foretold, each by a map of its own; negatives: places of the same record."""

    name: str = "cpc"
    steps: Annotated[int, Field(ge=1, le=1000)] = 12
    negatives: Annotated[int, Field(ge=1, le=2**16)] = 128


class Cpc(Method):
    """`method.name: cpc`.

    Raises UsageError for another encoder than s4 that hears forwards, and for a record of too few tokens.
    Legend: b records, N tokens, D width, K steps, M negatives.
    """

    Config: ClassVar[type[MethodConfig]] = CpcConfig
    reports: ClassVar[bool] = False

    ecg: S4Encoder

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, CpcConfig)
        if not isinstance(self.ecg, S4Encoder) or not self.ecg.causal:
            raise UsageError(
                f"method cpc foretells what comes, and encoder {config.encoder.name} has heard it",
                "set encoder.name to s4 and encoder.direction to forward",
            )
        self.config, tokens = method, -(-spec.samples // self.ecg.stride)
        if tokens <= method.steps:
            raise UsageError(
                f"method.steps {method.steps} looks beyond the {tokens} tokens of a record",
                f"set it to {max(1, tokens - 1)} or less, or shorten encoder.token_ms",
            )
        D = self.ecg.token_width
        self.ahead = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(method.steps))
        self.chance = Chance(math.log1p(method.negatives), "ln(1 + negatives)")

    def _recorded(self, valid_samples: np.ndarray, lead_mask: np.ndarray) -> np.ndarray:
        """int64 (b,): tokens that begin before the last valid sample; 0 for a record without any lead."""
        return np.where(lead_mask.any(axis=1), -(-valid_samples.astype(np.int64) // self.ecg.stride), 0)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and

        recorded   int64 (b,), how many tokens there are to foretell and to foretell from.
        negatives  int64 (b, M), recorded places, with replacement.
        """
        recorded = self._recorded(batch.valid_samples, batch.lead_mask)
        uniform = draws.uniform("negative places", self.config.negatives)
        places = np.floor(uniform * recorded[:, None]).astype(np.int64)
        return {
            **batch_signals(batch),
            "recorded": torch.from_numpy(recorded),
            "negatives": torch.from_numpy(places),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim); foretold (b, 2), errors and pairs; right (b, 2), pairs told rightly."""
        tokens, mask = self.ecg.embed_tokens(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
        states = self.ecg.encode_tokens(tokens, mask)
        _, embedding = self.ecg.embed_record(states, self._there(inputs, states.shape[1]))
        pairs = [self._step(k, tokens, states, inputs) for k in range(1, self.config.steps + 1)]
        errors, right = (torch.stack(found).sum(dim=0) for found in zip(*pairs, strict=True))
        count = self.counts(inputs)["foretold"].to(errors)
        return {
            "ecg": embedding,
            "foretold": torch.stack([errors, count], dim=1),
            "right": torch.stack([right, count], dim=1),
        }

    def _there(self, inputs: Mapping[str, Tensor], tokens: int) -> Tensor:
        """bool (b, N)."""
        return torch.arange(tokens, device=inputs["recorded"].device) < inputs["recorded"][:, None]

    def _step(self, k: int, tokens: Tensor, states: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of all t of a record: sum of L_tk (b,), and how often the right place had the highest score (b,)."""
        N, places = tokens.shape[1], inputs["negatives"]
        guess = self.ahead[k - 1](states[:, : N - k])  # (b, N - k, D)
        others = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))  # (b, M, D)
        exact = torch.promote_types(guess.dtype, torch.float32)
        true = (guess.to(exact) * tokens[:, k:].to(exact)).sum(dim=-1, keepdim=True)
        scores = (guess @ others.to(guess.dtype).transpose(1, 2)).to(exact)
        same = places[:, None] == torch.arange(k, N, device=places.device)[:, None]
        scores = scores.masked_fill(same, -torch.inf)
        asked = self._there(inputs, N)[:, k:]
        errors = torch.where(
            asked,
            F.cross_entropy(
                torch.cat([true, scores], dim=2).transpose(1, 2),
                places.new_zeros(asked.shape),
                reduction="none",
            ),
            0.0,
        )
        return errors.sum(dim=1), (asked & (true >= scores).all(dim=2)).sum(dim=1)

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; accuracy, the share of pairs whose right place had the highest score."""
        loss = mean_over_batch(features["foretold"], group)
        accuracy = mean_over_batch(features["right"], group)
        return StepLoss(loss, {"loss": loss.detach(), "accuracy": accuracy.detach()}, self.chance)

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors:
        recorded = inputs["recorded"]
        ahead = torch.arange(1, self.config.steps + 1, device=recorded.device)
        pairs = (recorded[:, None] - ahead).clamp_min(0).sum(dim=1).float()
        return {"foretold": pairs, "right": pairs}
