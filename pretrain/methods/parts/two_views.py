"""What methods of two random views of a record share: the views, what the encoder makes of them, and heads on top.

No reports. The views are drawn on the CPU and made on the device (`views`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.encoders.blocks.channel_norm import MicroBatchNorm
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import age_of
from cardialign.pretrain.methods.parts.views import ViewsConfig, view_draws, viewed

VIEWS = ("first", "second")
HeadNorm = Literal["layer", "micro-batch"]


class TwoViewsConfig(MethodConfig):
    """views: how far both may go from the record."""

    views: ViewsConfig = ViewsConfig()


class HeadsConfig(TwoViewsConfig):
    """norm: between the layers of the heads. `micro-batch` is the published BatchNorm, whose result depends on
    `training.micro_batch` and on the number of workers; `layer` looks at one record.
    """

    norm: HeadNorm = "layer"

    @property
    def depends_on_micro_batch(self) -> bool:
        return self.norm == "micro-batch"


class Across(nn.Module):
    """Normalisation of rows (b, d): each by itself, or each channel over the rows of a micro-batch."""

    def __init__(self, norm: HeadNorm, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm == "layer" else MicroBatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, :, None])[:, :, 0] if isinstance(self.norm, MicroBatchNorm) else self.norm(x)


class Head(nn.Sequential):
    """Linear layers of these widths, a normalisation and a ReLU between them; last: normalised at its end, too."""

    def __init__(self, widths: list[int], norm: HeadNorm, last: bool = False) -> None:
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(pairwise(widths)):
            end = k == len(widths) - 2
            layers.append(nn.Linear(before, after))
            if not end or last:
                layers.append(Across(norm, after))
            if not end:
                layers.append(nn.ReLU())
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(b, first width) -> float (b, last width), computed in the type of the weights."""
        first = self[0]
        assert isinstance(first, nn.Linear)  # a teacher's has no parameters, but the same names
        made: Tensor = super().forward(x.to(first.weight.dtype))
        return made


class TwoViews(Method):
    """Base. A subclass names its heads and its loss."""

    reports = False

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config.method, TwoViewsConfig)
        self.views = config.method.views

    def views_of(self, view: str) -> ViewsConfig:
        """How far one of the views may go."""
        return self.views

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """signal float32 (b, 12, T) mV, row int64 (b,), which says who is who, age (b,) in years where the encoder
        reads it, and what each view is made of.
        """
        rate = self.ecg.sampling_rate
        made = [view_draws(batch, self.views_of(view), draws, view, rate) for view in VIEWS]
        age = {"age": torch.from_numpy(batch.age_years)} if self.ecg.reads_age else {}
        whole = {"signal": torch.from_numpy(batch.signal), "row": torch.from_numpy(batch.rows)}
        return {**whole, **age, **made[0], **made[1]}

    def seen(
        self, inputs: Mapping[str, Tensor], view: str, encoder: nn.Module | None = None, tokens: bool = False
    ) -> EncoderOutput:
        """What the encoder, or a teacher in its place, makes of one view."""
        signal, leads, valid = viewed(inputs["signal"], inputs, view)
        found: EncoderOutput = (self.ecg if encoder is None else encoder)(
            signal, leads, valid, **({"return_tokens": True} if tokens else {}), **age_of(inputs)
        )
        return found


class Foretelling(TwoViews):
    """Base of methods whose rows do not look at each other. `forward` gives foretold (b, 2), a record's loss and 1."""

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, the mean over the global batch."""
        loss = mean_over_batch(features["foretold"], group)
        return StepLoss(loss, {"loss": loss.detach()})

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return {"foretold": torch.ones(len(inputs["row"]), device=inputs["row"].device)}


def similarity_of_views(first: Tensor, second: Tensor) -> Tensors:
    """The metric view_similarity: the mean cosine of the two views of this rank's records; nothing without records."""
    if not len(first):
        return {}
    return {"view_similarity": F.cosine_similarity(first.detach().float(), second.detach().float(), dim=-1).mean()}
