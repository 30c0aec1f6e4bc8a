"""What a pretraining method is: its configuration, its parameters, what it asks of a batch, and its loss.

The loop knows none of them.

    batch -> inputs (CPU) -> forward, one micro-batch at a time -> features
          -> loss over the global batch -> update -> after_update

How the pieces meet, whatever the method: a feature of rank 2 or more belongs to rows, `(b, ...)` for the b records of a
micro-batch; one of shape `(1,)` belongs to the whole batch. The loop encodes all micro-batches, joins their rows, calls
`loss` once with every row of this rank, and carries the gradient back to each micro-batch. So the result does not
depend on how a global batch is cut. A loss per row or per token is a row feature too: `(b, 2)` of sum and count,
averaged by `parts.row_losses.mean_over_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config import EncoderConfig, MethodConfig, RunConfig
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.encoders.blocks.channel_norm import MicroBatchNorm
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.scoring import COSINE, Scoring
from cardialign.pretrain.text.tower import TanhHead, TextHead

Tensors = dict[str, Tensor]
Weights = Callable[[str], Tensors]
"""Prefix -> whole float32 parameters (without the prefix), whatever the ZeRO stage.

A collective: all ranks call it alike.
"""


class ReportBank(Protocol):
    """The part of `cardialign.data_shards.text.bank.TextBank` that methods read;
    report ids are rows of the shard set's reports table.
    """

    embeddings: np.ndarray

    def embedding(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d) unit rows of the frozen report encoder."""
        ...

    def tokens(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 (b, N), padded at the end, and lengths int32 (b,)."""
        ...

    def similarity_features(self, report_ids: np.ndarray, dim: int | None = None) -> np.ndarray:
        """float32 (b, d) or (b, dim) unit rows.

        Their products are the centred cosines, or the low-rank approximation of these.
        """
        ...

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def statement_vectors(self) -> np.ndarray:
        """float32 (statements, d) unit rows: the frozen report encoder's vector of each statement alone."""
        ...

    def distant(self, k: int) -> np.ndarray:
        """int32 (reports, k or all others): the reports that say the most different things."""
        ...

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        """int64 (b,), never negative, equal exactly for equal reports."""
        ...


class Chance(NamedTuple):
    """The loss of a model that sees nothing, and the formula that says so in an alarm:
    "ln(1 + effective negatives)".
    """

    loss: float
    formula: str


class StepLoss(NamedTuple):
    """What a step is worth.

    loss     0-dim, of the global batch, equal on every rank; its gradient is exact for the rows of this rank, and whole
             for shared features.
    metrics  name -> detached 0-dim figure.
    chance   for the collapse alarm; None where there is no such figure: rank and finiteness alarm then.
    """

    loss: Tensor
    metrics: Tensors
    chance: Chance | None = None


class Exported(NamedTuple):
    """State dicts of what leaves a finished run:
    the ECG encoder, the report head and the trained report encoder where there is one, and those of `Method.scorings`.
    """

    encoder: Mapping[str, Tensor]
    report_head: Mapping[str, Tensor]
    report_encoder: Mapping[str, Tensor]
    scorings: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})


class Method(nn.Module):
    """Base of all methods: one file each in this folder, one row each in `pretrain.choices.METHODS`.

    DeepSpeed wraps the instance.

    The ECG encoder is the child `ecg`, made here. State that is not trained (teachers, queues, codebooks) are buffers:
    checkpoints carry them. Weights come from torch's global generator, seeded with `config.seed` before the instance is
    made; the random draws of a step from `Draws`.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    reports: ClassVar[bool] = True
    """False: no text bank is opened, and records without a report stay."""
    starts_from: ClassVar[str] = ""
    """The method whose run `init_from` has to name, because it learnt a part of this one; empty: any start, or none."""
    head: ClassVar[type[TextHead] | type[TanhHead]] = TextHead
    """What makes the unit vector of a report, the child `text.head` of a method that reads them."""
    scorings: ClassVar[tuple[str, ...]] = (COSINE,)
    """How its encoder may score a text beside an ECG, the first unless another is asked for. Each but `cosine` is a
    `Scoring`, the child of that name, which leaves with the encoder."""

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__()
        self.ecg = create_encoder(config.encoder, spec, config.data.normalisation)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """Stream batch of this rank -> CPU tensors (b, ...), all that `forward` and `loss` read.
        bank is None where `reports` is False.

        Views, masks and exchanged texts are drawn here, from `draws` and nothing else.
        """
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """One micro-batch of the inputs -> its features.

        A row feature `ecg` (b, d), where there is one, is watched for collapse (its rank).
        """
        raise NotImplementedError

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None
    ) -> StepLoss:
        """Features and inputs of all rows of this rank -> the loss of the global batch over the ranks of `group`.

        Called once a step.
        """
        raise NotImplementedError

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors | None:
        """Where the loss is a weighted mean of (sum, count) rows alone and the counts follow from the inputs:
        name -> counts float32 (b,).

        Then every micro-batch is encoded once instead of twice. None: two passes, right for every loss.
        """
        return None

    def taken(self, weights: Mapping[str, Tensor], encoder: EncoderConfig) -> Mapping[str, Tensor]:
        """The tensors of a start (`init_from`) by this method's names; encoder: as the start's configuration says it.

        For a stage that holds what an earlier one learnt under other names. Raises UserError where it does not serve.
        """
        return weights

    def learning_rates(self, step: int) -> Mapping[str, float]:
        """Parameter-name prefix -> factor of the learning rate at this step (0-based).

        For parts that do not follow the schedule as it stands.

        The prefixes are the same at every step (they decide the optimizer's groups). 0 keeps a part where it is:
        alternating steps.
        """
        return {}

    def after_update(self, step: int, weights: Weights) -> None:
        """After the optimizer step (0-based), on every rank alike: move teachers, queues, codebooks.

        What it changes are buffers. An override calls this one first: it moves the statistics of published BatchNorms.
        """
        for module in self.modules():
            if isinstance(module, MicroBatchNorm):
                module.after_update()

    @classmethod
    def exported(cls, state: Mapping[str, Tensor]) -> Exported:
        """State dict of the method -> what a consumer gets:
        the encoder itself, unless a method says that its teacher leaves.
        """
        scorings = {way: part(state, f"{way}.") for way in cls.scorings if way != COSINE}
        return Exported(part(state, "ecg."), part(state, "text.head."), part(state, "text.transformer."), scorings)

    @classmethod
    def scoring(cls, name: str, config: RunConfig, ecg: EcgEncoder) -> Scoring:
        """One of `scorings` but the cosine, with fresh weights; ecg: whose outputs it reads."""
        raise NotImplementedError


def part(state: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def method_class(config: RunConfig) -> type[Method]:
    """The class that `method.name` asks for. Raises UsageError for a name nobody has and a plug-in that is broken."""
    found: Any = METHODS.find(config.method.name)
    return found


@contextmanager
def watched(config: RunConfig, work: str) -> Iterator[None]:
    """Work of ours that method and encoder of a run take part in; raises UsageError where a plug-in breaks it."""
    with METHODS.watched(config.method.name, f"failed in {work}"):
        with ENCODERS.watched(config.encoder.name, f"failed in {work}"):
            yield


def create_method(config: RunConfig, spec: SignalSpec) -> Method:
    """The method of a run with fresh weights: seed torch's global generator with `config.seed` first.

    Raises UsageError as `method_class` does, and for a plug-in that cannot be made: no restart would mend it.
    """
    cls = method_class(config)
    with METHODS.blamed(config.method.name, "cannot be made"):
        return cls(config, spec)
