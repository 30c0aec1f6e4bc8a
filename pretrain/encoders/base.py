"""What every ECG encoder is: twelve leads in, one embedding out, and nothing that is missing or padded has a say."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import EncoderConfig


class EncoderOutput(NamedTuple):
    """What an encoder says of B records.

    Legend: E embedding_dim, F feature_width, N tokens, D token_width, G lead groups, Q queries.

    embedding      float32 (B, E), L2-normalised.
    features       (B, F), pooled but not projected: what a linear probe reads.
    tokens         (B, N, D) when asked for, else None.
    token_mask     bool (B, N) with the tokens: True where a token saw a recorded sample of a recorded lead. Other
                   tokens mean nothing.
    valid_samples  int (B,) as they came in; None when no record is padded.
    group_weights  float32 (B, G), 0 for a missing group, else summing to 1; None for an encoder that weighs no lead
                   groups.
    views          float32 (B, Q, E), L2-normalised: what each learned query sees for itself, in the space of the
                   embedding, which is that of their mean; None for an encoder that pools otherwise.
    """

    embedding: Tensor
    features: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    valid_samples: Tensor | None = None
    group_weights: Tensor | None = None
    views: Tensor | None = None


class EcgEncoder(nn.Module):
    """Base of all encoders: one file each in this folder, one row each in `pretrain.choices.ENCODERS`.

    The contract, held by one test over all rows: a sample of a missing lead or behind `valid_samples`, NaN included,
    changes no output; records do not see each other (a published BatchNorm is an option that says so by name); in
    evaluation the output is a function of the input; the forward pass can be traced by `torch.export` with a dynamic
    batch.

    sampling_rate in Hz, samples T per record, normalisation one of `encoders.blocks.normalise.NORMALISATIONS`.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig

    word: str = ""
    """`encoder.name` that it was made for."""
    group_names: tuple[str, ...] = ()
    """Names of the lead groups, in the order of `EncoderOutput.group_weights`; empty for an encoder without."""
    group_leads: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Lead group -> the names of its leads, in the same order."""
    block_list: str = "blocks"
    """Dotted name of the list of its repeated layers, as it stands in the names of its weights."""
    removes_tokens: bool = False
    """True where `forward` takes `missing`, too, bool (B, 12, T): stretches of a lead that are left out, not flat."""
    reads_age: bool = False
    """True where `forward` takes `age`, too, float (B,) in years, NaN or no `age` at all where it is not known."""
    feature_width: int
    token_width: int

    def __init__(self, spec: SignalSpec, normalisation: str) -> None:
        super().__init__()
        self.sampling_rate, self.samples, self.normalisation = spec.sampling_rate, spec.samples, normalisation

    def gated(self) -> EcgEncoder:
        """A copy that `reads_age`, with fresh gates: until they learn, it gives what this one gives.

        Raises UserError for an encoder that has no place for them.
        """
        raise UserError(
            f"encoder {self.word or type(self).__name__} has no place for an age gate",
            "take an encoder of encoder.name cardialign, or let the head read the age: age_gate=head",
        )

    def without_fft(self) -> EcgEncoder:
        """What computes the same on records of its length without transforms and complex numbers, for file formats that
        have neither; by default the encoder itself."""
        return self

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """signal (B, 12, T) in mV, lead_mask bool (B, 12),
        valid_samples int (B,) or None when no record is padded (faster).
        """
        raise NotImplementedError


def create_encoder(config: EncoderConfig, spec: SignalSpec, normalisation: str = "none") -> EcgEncoder:
    """The encoder that `encoder.name` asks for, with fresh weights from torch's global generator.

    Raises UsageError for a name nobody has, for a plug-in that is broken or cannot be made, and as the encoder itself
    does for a spec that it cannot read.
    """
    cls: Any = ENCODERS.find(config.name)
    with ENCODERS.blamed(config.name, "cannot be made"):
        made: EcgEncoder = cls(config, spec, normalisation)
        made.word = config.name
    return made
