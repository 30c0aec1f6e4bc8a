"""ST-MEM (Na et al. 2024): most patches of every lead are hidden and reconstructed from what all leads show.

No reports. Per lead `mask_ratio` of the patches are hidden, drawn for each lead alone: every lead keeps as many.
The encoder sees the kept patches of all leads together. The decoder works lead by lead with shared weights: it
sees the other leads only through what the encoder made of the kept patches. The loss is the mean squared error of the
hidden, recorded patches, each normalised to mean 0 and variance 1:

    L = sum over hidden patches p of |decoded_p - normalised(x_p)|^2 / K  /  hidden patches of the global batch

Ours: rotary positions in seconds, no separator tokens; patches that are padded or of a missing lead count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Depth, MethodConfig, RunConfig, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.vit1d import Vit1d
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import batch_signals

LEADS = len(STANDARD_LEADS)


class StMemConfig(MethodConfig):
    """Published: three quarters hidden, a decoder of 4 blocks, 256 wide, with 4 heads."""

    name: str = "st_mem"
    mask_ratio: Annotated[float, Field(ge=1e-6, lt=1)] = 0.75
    decoder_width: Width = 256
    decoder_depth: Depth = 4
    decoder_heads: Depth = 4

    @model_validator(mode="after")
    def _heads_fit(self) -> StMemConfig:
        refuse(head_problems(self.decoder_width, self.decoder_heads, of="decoder_"))
        return self


class StMem(Method):
    """`method.name: st_mem`.

    Raises UsageError for another encoder than vit1d with lead-wise patches, or when a lead would keep no patch.
    Legend: b records, n patches per lead, N = 12 n, M kept patches, K samples per patch, d decoder_width.
    """

    Config: ClassVar[type[MethodConfig]] = StMemConfig
    reports: ClassVar[bool] = False

    ecg: Vit1d

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, StMemConfig)
        if not isinstance(self.ecg, Vit1d) or not self.ecg.per_lead:
            raise UsageError(
                f"method st_mem hides patches of single leads, encoder {config.encoder.name} has none",
                "set encoder.name to vit1d and encoder.patches to lead",
            )
        self.patches = spec.samples // self.ecg.patch_samples
        self.kept = int(self.patches * (1 - method.mask_ratio))
        if self.kept < 1:
            raise UsageError(
                f"method.mask_ratio {method.mask_ratio:g} leaves none of the {self.patches} patches of a lead",
                "lower mask_ratio, or shorten encoder.patch_ms",
            )
        d = method.decoder_width
        self.to_decoder = nn.Linear(self.ecg.token_width, d)
        self.mask_token = nn.Parameter(torch.randn(1, d) * 0.02)
        self.decoder = TemporalEncoder(d, method.decoder_depth, method.decoder_heads, 4.0, 0.0, 0.0)
        self.to_samples = nn.Linear(d, self.ecg.patch_samples)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and two more:

        kept    int64 (b, M), the places of the patches that are shown, lead after lead.
        hidden  bool (b, N), what is to be reconstructed: not shown, of a recorded lead, recorded to its last sample.
        """
        shown = draws.chosen("shown patches", self.kept, self.patches, LEADS).reshape(len(batch.rows), -1)
        complete = (np.arange(self.patches) + 1) * self.ecg.patch_samples <= batch.valid_samples[:, None]
        recorded = (batch.lead_mask[:, :, None] & complete[:, None, :]).reshape(shown.shape)
        kept = np.nonzero(shown)[1].reshape(len(batch.rows), LEADS * self.kept)
        return {**batch_signals(batch), "kept": torch.from_numpy(kept), "hidden": torch.from_numpy(recorded & ~shown)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of what was shown; reconstruction (b, 2), the errors' sum and number."""
        given = inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")
        everything = self.ecg.embed_patches(*given)
        shown = everything.keep(inputs["kept"])
        tokens = self.ecg.encode_patches(shown)  # (b, M, D)
        decoded = self._decode(tokens, inputs["kept"], everything.seconds[: self.patches], everything.mask)
        wanted = self.ecg.patch_values(*given)
        wanted = F.layer_norm(wanted, wanted.shape[-1:], eps=1e-6)
        errors = (decoded.float() - wanted).square().mean(dim=-1) * inputs["hidden"]
        seen = torch.ones_like(inputs["kept"], dtype=torch.bool) if shown.mask is None else shown.mask
        embedding = F.normalize(self.ecg.projection(self.ecg.pool(tokens, seen)).float(), dim=-1)
        return {
            "ecg": embedding,
            "reconstruction": torch.stack([errors.sum(1), inputs["hidden"].sum(1).float()], dim=1),
        }

    def _decode(self, tokens: Tensor, kept: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encoded patches (b, M, D) at their places among mask tokens, each lead for itself -> (b, N, K).

        mask bool (b, N): the patches that anything was recorded of, None = all; nobody attends to another.
        """
        small = self.to_decoder(tokens)
        grid = self.mask_token.to(small.dtype).expand(len(kept), LEADS * self.patches, -1).clone()
        grid.scatter_(1, kept[..., None].expand_as(small), small)
        by_lead = grid.unflatten(1, (LEADS, self.patches)).flatten(0, 1)  # (12 b, n, d)
        if mask is not None:
            mask = mask.unflatten(1, (LEADS, self.patches)).flatten(0, 1)
            mask = mask | ~mask.any(dim=1, keepdim=True)  # of a lead that was not recorded nothing is asked
        return self.to_samples(self.decoder(by_lead, seconds, mask)).unflatten(0, (-1, LEADS)).flatten(1, 2)

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss.

        A model that draws the mean everywhere stands at 1. Masked models stay near it for a while, so it is no alarm.
        """
        loss = mean_over_batch(features["reconstruction"], group)
        return StepLoss(loss, {"loss": loss.detach()})

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return {"reconstruction": inputs["hidden"].sum(1).float()}
