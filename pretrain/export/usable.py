"""What every encoder offers to those who use it, whoever trained it and in whatever form it came.

Evaluations, probes and commands know nothing else of an encoder, and ask none what kind it is.
Legend: B batch, L leads, T samples, e embedding_dim, F width of the features.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Unpack

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.export.ages import AgeReader
from cardialign.pretrain.export.given_signal import SignalForm
from cardialign.pretrain.export.trained_on import TrainedOn
from cardialign.pretrain.methods.parts.scoring import COSINE

Reader = Callable[..., EncoderOutput]
"""signal float32 (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples int (B,) -> embedding (B, e), features (B, F).

Of an encoder that `reads_age` it is an `ages.AgeReader`: `ages.aged` gives it the ages of a batch.
T may be shorter than a record of the set: a piece of it.
"""
GapReader = Callable[..., EncoderOutput]
"""The same with missing bool (B, 12, T), the samples of single leads that are not to be seen."""


class UsableEncoder(ABC):
    """digest: what names it in results. device: where its numbers are computed.

    untrainable: why it has no counterpart with fresh weights; "" when `untrained` gives one.
    leaves_out: whether what its `reader` gives takes `missing`, too, as `GapReader` does.
    reads_age: whether what its `reader` gives takes `age`, too, float (B,) in years, NaN where it is not known.
    leads_read: the leads that it looks at; needs_all_leads: whether it refuses records without one of them.
    report_style: how statements become the text of a report for `embed_text` (`data_shards.report_text`).
    """

    digest: str
    device: torch.device
    leads_read: tuple[str, ...] = STANDARD_LEADS
    needs_all_leads: bool = False
    untrainable: str = ""
    leaves_out: bool = False
    reads_age: bool = False

    @property
    def report_style(self) -> str:
        return "sentences"

    @property
    def bare_digest(self) -> str:
        """What names it on a missingness card: its digest, but for a card that it carries already."""
        return self.digest

    @property
    def group_leads(self) -> Mapping[str, tuple[str, ...]]:
        """Lead group -> its leads, in the order of `EncoderOutput.group_weights`; empty where no groups are weighed."""
        return {}

    @abstractmethod
    def reader(self, spec: SignalSpec) -> Reader:
        """What embeds records of a shard set of this rate and length. Raises UserError where these do not fit."""

    def token_reader(self, spec: SignalSpec) -> Reader:
        """The same with the tokens. Raises UserError where it has none, and as `reader`."""
        raise UserError(
            f"encoder {self.digest[:24]} has no tokens, only features of whole records",
            "leave --attention out: the linear probe reads its features",
        )

    def gap_reader(self, spec: SignalSpec) -> GapReader:
        """What embeds records with gaps. A lead of which nothing is left is a missing lead, for every encoder.

        Another gap is a flat line of 0 mV, as of an electrode that fell off: an encoder knows missing leads and a
        missing end, nothing between. One that `leaves_out` patches of single leads does so with each that is missing in
        part. Raises UserError as `reader`.
        """
        read: Callable[..., EncoderOutput] = self.reader(spec)

        def with_gaps(
            signal: np.ndarray, lead_mask: np.ndarray, valid: np.ndarray, missing: np.ndarray, **age: np.ndarray
        ) -> EncoderOutput:
            gaps = {"missing": missing} if self.leaves_out else {}
            return read(*without(signal, lead_mask, valid, missing), valid, **gaps, **age)

        return AgeReader(with_gaps) if self.reads_age else with_gaps

    @abstractmethod
    def embed(self, signal: np.ndarray, *, sampling_rate: float, **form: Unpack[SignalForm]) -> np.ndarray:
        """A user's array (B, L, T) or (L, T) -> float32 (B, e), unit rows. What does not fit is a UserError."""

    @abstractmethod
    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Report texts -> float32 (n, e), unit rows beside those of `embed`. Raises UserError without a text side."""

    def tokens_of(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """What it reads of n texts: token ids int (n, N), and their lengths (n,), N where a text is cut; None where
        that cannot be seen."""
        return None

    @property
    def scorings(self) -> tuple[str, ...]:
        """Ways in which it scores a text beside an ECG, its own one first."""
        return (COSINE,)

    def text_reader(self, spec: SignalSpec, texts: list[str], scoring: str) -> Reader:
        """As `reader`, with the scores of P texts, float32 (B, P), in the place of the embedding.

        Never for the cosine, which needs no more than `reader` and `embed_text`. Raises UsageError for a way that it
        does not have.
        """
        raise self.unknown_scoring(scoring)

    def unknown_scoring(self, scoring: str) -> UsageError:
        """The error for a way that it does not have."""
        return UsageError(
            f"encoder {self.digest[:24]} does not score texts by {scoring!r:.40}",
            f"leave the choice out, or take one of {', '.join(self.scorings)}",
        )

    def class_scores(
        self,
        signal: np.ndarray,
        texts: list[str],
        *,
        sampling_rate: float,
        scoring: str | None = None,
        **form: Unpack[SignalForm],
    ) -> np.ndarray:
        """A user's array as of `embed`, and P texts -> float32 (B, P): cosines or logits, the larger the better, each
        text for itself. scoring: one of `scorings`; None: its own.

        Raises UsageError for a way that it does not have, UserError as `embed` and `embed_text`.
        """
        if scoring not in (None, COSINE):
            self.text_reader(SignalSpec(sampling_rate, 1), texts, str(scoring))
        return self.embed(signal, sampling_rate=sampling_rate, **form) @ self.embed_text(texts).T

    @abstractmethod
    def untrained(self, seed: int = 0) -> UsableEncoder:
        """The same encoder with fresh weights. Raises UserError where it cannot be made anew (`untrainable`)."""

    @abstractmethod
    def trainable(self, spec: SignalSpec) -> EcgEncoder:
        """What fine-tuning copies and trains, reading records of this rate and length.

        Raises UserError where it has no weights that can learn, or does not fit.
        """

    @abstractmethod
    def weights_digest(self) -> str:
        """sha256 over all weights as they are now: the same before and after says that nothing was trained."""

    @abstractmethod
    def computing_digest(self) -> str:
        """sha256 over everything of it that decides its numbers: weights, construction, signal contract."""

    @abstractmethod
    def seen(self) -> TrainedOn:
        """The records that it was trained on, as far as anybody wrote them down."""

    def training_run(self) -> str:
        """The same word for all encoders of one training run, whatever their step; of one without a run its digest."""
        return self.digest


def without(
    signal: np.ndarray, lead_mask: np.ndarray, valid: np.ndarray, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signal with 0 mV where it is missing, and lead mask without the leads of which no recorded sample is left."""
    recorded = np.arange(signal.shape[-1]) < np.asarray(valid)[:, None, None]
    left = (recorded & ~missing).any(axis=-1) | ~recorded.any(axis=-1)
    return np.where(missing, np.float32(0), signal), lead_mask & left


def tensors_digest(tensors: Mapping[str, Tensor], first: bytes = b"") -> str:
    """sha256 over `first` and named tensors, to the last bit."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(first + content).hexdigest()


def usable_device(device: torch.device | str) -> torch.device:
    """The device, when numbers can be put on it and read back. Raises UserError."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"device {str(device)!r:.60} cannot be used here ({str(error).splitlines()[0]:.120})",
            "give cpu, or cuda on a machine whose GPU PyTorch sees (`cardialign doctor` says whether it does)",
        ) from None
    return found
