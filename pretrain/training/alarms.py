"""The collapse alarm: stop a run that has stopped learning, and say what was seen and what to change.

Two signs after warm-up. The loss sits at chance: what the method says a model reaches that sends every record to one
point. A method without such a figure is not judged by it, nor is a loss that is still falling from above. Or the
effective rank of the ECG embeddings (RankMe, Garrido et al. 2023: exponential of the entropy of the normalised singular
values) falls towards a line. Both must last: a model that has just left its warm-up may still map all records into a
narrow cone.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from cardialign.data_shards.errors import NOT_LEARNING, UserError
from cardialign.pretrain.config import CollapseConfig
from cardialign.pretrain.methods.base import Chance

REMEDY = (
    "lengthen the warm-up (schedule.warmup_fraction), lower optimizer.lr, or raise method.temperature where the method "
    "has one; then start again in a new run directory"
)

NOT_FINITE_REMEDY = (
    "the last checkpoint is intact; lower optimizer.lr, or look for bad records "
    "with `cardialign shards verify` and `shards inspect`"
)


class CollapseError(UserError):
    """The run was stopped because the model no longer learns, or its loss is not a number."""

    exit_code = NOT_LEARNING


def effective_rank(features: torch.Tensor) -> float:
    """RankMe of the rows of all ranks together, 1..d. features (b, d) of this rank;
    the same value on every rank, no row leaves its rank.
    """
    double = features.detach().double()
    gram = double.T @ double
    if dist.is_initialized():
        dist.all_reduce(gram)
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-300)
    return float(torch.exp(-(share * torch.log(share.clamp_min(1e-300))).sum()))


class CollapseAlarm:
    """Fed with what every rank sees alike, so that all ranks stop together.

    `warmup`: steps during which nothing is judged.
    """

    def __init__(self, config: CollapseConfig, warmup: int) -> None:
        self.config = config
        self.warmup = warmup
        self.at_chance = 0
        self.lowest = math.inf
        self.low_since: int | None = None

    def check_loss(self, step: int, loss: float, chance: Chance | None) -> None:
        """A finite loss of step `step` (1-based), before its update is applied. Raises CollapseError."""
        if chance is None or not self.config.enabled or step <= self.warmup:
            return
        margin = self.config.loss_margin
        if (
            loss > chance.loss + margin and loss < self.lowest - margin
        ):  # above chance, as a bad start may be, but falling
            self.lowest, self.at_chance = loss, 0
        self.at_chance = self.at_chance + 1 if loss >= chance.loss - margin else 0
        if self.at_chance >= self.config.patience_steps:
            raise CollapseError(
                f"step {step}: for {self.at_chance} steps the loss ({loss:.4f}) has not been below "
                f"{chance.formula} = {chance.loss:.4f} by more than {self.config.loss_margin:g}: "
                "every record looks the same to the model",
                REMEDY,
            )

    def check_rank(self, step: int, rank: float | None) -> None:
        """Raises CollapseError when the effective rank of the ECG embeddings has been below `min_rank` for
        `patience_steps` after warm-up, at every step where it was looked at; None = not looked at.
        """
        if rank is None or not self.config.enabled or step <= self.warmup:
            return
        if rank >= self.config.min_rank:
            self.low_since = None
            return
        self.low_since = step if self.low_since is None else self.low_since
        if step - self.low_since >= self.config.patience_steps:
            raise CollapseError(
                f"step {step}: the ECG embeddings of the batch have effective rank {rank:.2f}, "
                f"and since step {self.low_since} it has been below collapse.min_rank {self.config.min_rank:g}",
                REMEDY,
            )
