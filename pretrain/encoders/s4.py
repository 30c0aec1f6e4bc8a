"""S4: a diagonal state-space model over time. Every token hears the whole record, at the cost of an FFT.

Legend: B batch, T samples, N tokens, D width, S complex states of a channel.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, Milliseconds, Positive, Width, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.pooling import token_pooling

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1
"""Range of the learned step of a channel at the start, in tokens: of memories from 10 to 1,000 tokens (S4D)."""


class S4Config(EncoderConfig):
    """The shape that classifies PTB-XL from scratch (Mehari & Strodthoff 2022) is the default.

    state: real size of a channel's state; even, because states come in conjugate pairs.
    token_ms: stretch of signal in one token, in milliseconds: 10 is one sample at 100 Hz, and five at 500 Hz.
    heads: of the attention pooling.
    direction: `forward`: a token hears what came before it and itself, as a method that foretells what comes needs it.
    """

    name: str = "s4"
    width: Width = 512
    depth: Depth = 4
    state: Annotated[int, Field(ge=2, le=4096, multiple_of=2)] = 8
    token_ms: Milliseconds = 10.0
    dropout: DropRate = 0.0
    pooling: Literal["mean", "attention"] = "mean"
    heads: Positive = 8
    direction: Literal["both", "forward"] = "both"

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> S4Config:
        if self.pooling == "attention" and self.width % self.heads:
            refuse([f"width {self.width} is not a multiple of heads {self.heads}; choose another width or heads"])
        return self


class StateSpace(nn.Module):
    """A linear state-space model per channel, run forwards and backwards in time: (B, D, N) -> (B, D, N), float32.
    `forward` alone: no output knows a later input.

    With the diagonal A = -exp(log_decay) + i frequency, a step d = exp(log_step) and zero-order hold,

        state[n] = exp(d A) state[n - 1] + (exp(d A) - 1) / A input[n],    output[n] = 2 Re(readout . state[n]),

    forwards; backwards the same from the other end, one token on, so that no token counts twice; and `skip` x input.
    Read as a convolution with its impulse response, by FFT. Initialised as S4D-Lin (Gu et al. 2022, "On the
    Parameterization and Initialization of Diagonal State Space Models").
    """

    def __init__(self, width: int, state: int, directions: int = 2) -> None:
        super().__init__()
        pairs = state // 2
        self.width, self.pairs = width, pairs
        log_step = torch.empty(width).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP))
        self.log_step = nn.Parameter(log_step)
        # Flat, so that no weight decay pulls at the dynamics.
        self.log_decay = nn.Parameter(torch.full((width * pairs,), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(pairs)).repeat(width))
        self.readout = nn.Parameter(
            torch.randn(directions, width, pairs, 2) * 0.5**0.5
        )  # directions; real and imaginary part
        self.skip = nn.Parameter(torch.randn(width))

    def impulse_response(self, length: int) -> Tensor:
        """Each direction, (2 or 1, D, length): what an input of 1 at token 0 gives at tokens 0, 1, ..."""
        exact = torch.promote_types(self.readout.dtype, torch.float32)
        decay, frequency = (x.to(exact).view(self.width, self.pairs) for x in (self.log_decay, self.frequency))
        poles = torch.complex(-decay.exp(), frequency)
        rates = poles * self.log_step.to(exact).exp()[:, None]
        readout = torch.complex(*self.readout.to(exact).unbind(-1)) * torch.expm1(rates) / poles
        powers = torch.exp(rates[..., None] * torch.arange(length, device=rates.device))  # (D, S, length)
        return 2 * torch.einsum("dcs,csn->dcn", readout, powers).real

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        ahead, *back = self.impulse_response(length).to(x.dtype)
        response = F.pad(ahead, (0, length))
        if back:
            response = response + F.pad(back[0].flip(-1), (length, 0))
        spectrum = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(response, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.skip.to(x.dtype)[:, None] * x


class FixedStates(nn.Module):
    """A trained `StateSpace` on inputs (B, D, length) of one length: its impulse response written out and convolved
    with, which costs length / log(length) times as much as the FFT."""

    response: Tensor

    def __init__(self, states: StateSpace, length: int) -> None:
        super().__init__()
        with torch.no_grad():
            ahead, *back = states.impulse_response(length)
            self.margins = (length - 1, length - 1 if back else 0)
            response = torch.cat([ahead.flip(-1), *(each[:, : length - 1] for each in back)], dim=-1)
        self.register_buffer("response", response[:, None].clone())  # (D, 1, taps): of earlier inputs first
        self.skip = nn.Parameter(states.skip.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved = F.conv1d(F.pad(x, self.margins), self.response, groups=x.shape[1])
        return convolved + self.skip[:, None] * x


class S4Block(nn.Module):
    """x + f(x), f: LayerNorm, state space, GELU, gated linear map. (B, N, D); mask bool (B, N, 1) or None."""

    def __init__(self, width: int, state: int, dropout: float, directions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.states: StateSpace | FixedStates = StateSpace(width, state, directions)
        self.mix = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        branch = self.norm(x)
        if mask is not None:  # what is behind the last sample must not come back from the other end
            branch = torch.where(mask, branch, 0.0)
        branch = self.states(branch.transpose(1, 2)).transpose(1, 2).to(x.dtype)
        return x + self.dropout(F.glu(self.mix(self.dropout(F.gelu(branch))), dim=-1))


class S4Encoder(EcgEncoder):
    """Twelve leads as channels of one sequence -> one unit vector per record.

    Tokens of `token_ms` by a convolution that reads each sample once; a missing lead adds its own learned vector
    instead. Then `depth` blocks, LayerNorm, and the mean of the tokens as features, or attention over them.

    A padded record gives what the record cut to its valid samples gives. Size (width 512, 4 blocks, embedding_dim 256,
    500 Hz): 2.3 M. The FFTs are not in the FLOPs that are counted.

    Raises UsageError when a token is no whole number of samples, or longer than the record.
    """

    Config: ClassVar[type[EncoderConfig]] = S4Config

    def __init__(self, config: S4Config, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        samples = config.token_ms * spec.sampling_rate / 1000.0
        self.stride = round(samples)
        if abs(samples - self.stride) > 1e-6 or not 0 < self.stride <= spec.samples:
            raise UsageError(
                f"encoder.token_ms {config.token_ms:g} is {samples:g} samples at {spec.sampling_rate:g} Hz; "
                f"a token takes a whole number of samples, up to the record's {spec.samples}",
                f"choose a multiple of {1000 / spec.sampling_rate:g} ms",
            )
        self.stem = nn.Conv1d(len(STANDARD_LEADS), config.width, self.stride, self.stride)
        # LayerNorm forgets the length of a token. Beside a bias of the size of a wave (mV) the voltage is an angle.
        assert self.stem.bias is not None
        nn.init.normal_(self.stem.bias, std=0.5)
        self.missing = nn.Parameter(torch.randn(len(STANDARD_LEADS), config.width) * 0.02)
        self.causal = config.direction == "forward"
        self.blocks = nn.ModuleList(
            S4Block(config.width, config.state, config.dropout, 1 if self.causal else 2) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.pool = token_pooling(config.pooling, config.width, config.heads)
        self.feature_width = self.token_width = config.width
        self.projection = nn.Linear(config.width, config.embedding_dim)

    def without_fft(self) -> S4Encoder:
        plain = copy.deepcopy(self)
        for block in plain.blocks:
            assert isinstance(block, S4Block) and isinstance(block.states, StateSpace)
            block.states = FixedStates(block.states, -(-self.samples // self.stride))
        return plain

    def embed_tokens(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs of `forward` -> tokens (B, N, D), each of its own stretch of time alone (but for statistics of a
        normalisation), and which begin before the last valid sample, bool (B, N); None: all."""
        signal = normalise(signal, lead_mask, valid_samples, self.normalisation)
        signal = F.pad(signal, (0, -signal.shape[-1] % self.stride)).to(self.missing.dtype)
        x = self.stem(signal).transpose(1, 2)  # (B, N, D)
        x = x + ((~lead_mask).to(self.missing.dtype) @ self.missing)[:, None].to(x.dtype)
        if valid_samples is None:
            return x, None
        return x, torch.arange(x.shape[1], device=x.device) * self.stride < valid_samples[:, None]

    def encode_tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What `embed_tokens` made -> (B, N, D) after the blocks."""
        for block in self.blocks:
            x = block(x, None if mask is None else mask[..., None])
        encoded: Tensor = self.norm(x)
        return encoded

    def embed_record(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode_tokens` made, and which of them count, bool (B, N) -> features (B, F) and embedding (B, E)."""
        features = self.pool(tokens, token_mask)
        return features, F.normalize(self.projection(features).float(), dim=-1)

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """As every encoder; N = ceil(T / samples of a token)."""
        embedded, mask = self.embed_tokens(signal, lead_mask, valid_samples)
        tokens = self.encode_tokens(embedded, mask)
        token_mask = lead_mask.any(dim=1, keepdim=True).expand(tokens.shape[:2])
        if mask is not None:
            token_mask = token_mask & mask
        features, embedding = self.embed_record(tokens, token_mask)
        output = EncoderOutput(embedding, features, valid_samples=valid_samples)
        return output._replace(tokens=tokens, token_mask=token_mask) if return_tokens else output
