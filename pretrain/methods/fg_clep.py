"""FG-CLEP (workshop form, arXiv 2505.11939v1): SigLIP, and pairs whose reports are alike are let be alike.

    L = L_sig + lambda L_fnm
    L_sig = -1/B sum_ij log sigmoid(z_ij (t cos(e_i, t_j) + b)),   z_ii = 1, else -1,   t = e^{log_scale}
    L_fnm = 1/B sum_ij |cos(e_i, t_j) - S_ij|,   S_ij = cos(t_i, t_j) of the projected, trained text embeddings
t starts at 10, b at -10, lambda is 0.5. The equation as typeset has one sign more and another index; this is the form
that trains. Ours: S is a constant of the step unless `stop_gradient` is off, because differentiated the term falls when
all reports move together; records whose reports are equal have S = 1 exactly.
The other half of the method, completed reports, is data: `cardialign text complete` makes them, `data.reports` names
them, and stage 2 is this method again with `init_from`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.kernels.contrastive import Execution, Similarity, false_negative_mitigation
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.methods.base import StepLoss
from cardialign.pretrain.methods.siglip import SigLip, SigLipConfig


class FgClepConfig(SigLipConfig):
    """As `siglip`, and mitigation: lambda, the weight of L_fnm; stop_gradient: S is a constant of the step."""

    name: str = "fg_clep"
    mitigation: Annotated[float, Field(ge=0, le=1e4)] = 0.5
    stop_gradient: bool = True


class FgClep(SigLip):
    """`method.name: fg_clep`. Inputs and features are those of `siglip`.

    It names no loss of a model that sees nothing: L_fnm of a healthy run is above that of one that sends every record
    and every report to one point. The alarms of rank and finiteness watch it.
    """

    Config: ClassVar[type[MethodConfig]] = FgClepConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config.method, FgClepConfig)
        self.mitigation, self.stop_gradient = config.method.mitigation, config.method.stop_gradient
        self.chance = None if self.mitigation else self.chance

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: those of `siglip`, sigmoid_loss and mitigation_loss."""
        judged = super().loss(features, inputs, group)
        if not self.mitigation:
            return judged
        ecg, text = features["ecg"], features["text"]
        alike = Similarity("cosine", text.detach(), inputs["report_key"]) if self.stop_gradient else None
        execution = Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme)
        apart = false_negative_mitigation(ecg, text, alike, execution)
        loss = judged.loss + self.mitigation * apart
        parts = {"sigmoid_loss": judged.loss.detach(), "mitigation_loss": apart.detach()}
        return StepLoss(loss, {**judged.metrics, **parts, "loss": loss.detach()}, self.chance)
