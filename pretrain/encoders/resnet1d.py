"""One-dimensional residual networks: the encoder of most published ECG-text methods (MERL, FG-CLEP, TAMER)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config import Depth, EncoderConfig, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.channel_norm import channel_norm
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.pooling import token_pooling

BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Residual blocks per stage, by depth."""
BOTTLENECK_EXPANSION = 4


class ResNet1dConfig(EncoderConfig):
    """The published shape is the default, but for the normalisation.

    width: channels of the first stage; each further stage has twice as many.
    norm: `group` and `layer` normalise one record. `micro-batch` is the published BatchNorm: its result depends on
    `training.micro_batch` and on the number of workers, which decide which records see each other.
    max_pool: the pooling after the first convolution, as for images (He et al. 2016); MERL leaves it out.
    heads: of the attention pooling; MERL has 4.
    """

    name: str = "resnet1d"
    depth: Literal[18, 34, 50] = 18
    width: Annotated[int, Field(gt=0, le=2**13)] = 64
    norm: Literal["group", "layer", "micro-batch"] = "group"
    max_pool: bool = False
    pooling: Literal["mean", "attention"] = "attention"
    heads: Depth = 4

    @property
    def depends_on_micro_batch(self) -> bool:
        return self.norm == "micro-batch"

    @property
    def channels(self) -> int:
        """Of the last stage."""
        return 8 * self.width * (BOTTLENECK_EXPANSION if self.depth == 50 else 1)

    @model_validator(mode="after")
    def _heads_divide_the_channels(self) -> ResNet1dConfig:
        if self.pooling == "attention" and self.channels % self.heads:
            refuse([f"heads {self.heads} do not divide the {self.channels} channels of the last stage; choose others"])
        return self


def strided(mask: Tensor | None, stride: int) -> Tensor | None:
    """Mask of valid samples after a convolution of this stride.

    Its zero padding makes ceil(T / stride) samples of T, and as many of the valid ones.
    """
    return mask if mask is None or stride == 1 else mask[..., ::stride]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, bias: bool = False) -> nn.Conv1d:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


class Stem(nn.Module):
    """Signal (B, 12, T) -> (B, width, ceil(T / 2)): convolution of 7 samples, stride 2, and what is missing.

    A missing lead adds nothing to the convolution, as a flat line does. Its own learned vector, added at every sample,
    tells the two apart.
    """

    def __init__(self, config: ResNet1dConfig) -> None:
        super().__init__()
        per_record = config.norm != "micro-batch"
        self.convolution = _convolution(len(STANDARD_LEADS), config.width, 7, 2, bias=per_record)
        self.missing = nn.Parameter(torch.randn(len(STANDARD_LEADS), config.width) * 0.02)
        self.norm = channel_norm(config.norm, config.width)
        self.max_pool = config.max_pool
        if self.convolution.bias is not None:
            # Statistics of one record alone forget its voltage; beside a bias of the size of a wave (mV) they keep it.
            nn.init.normal_(self.convolution.bias, std=0.5)

    def forward(self, signal: Tensor, lead_mask: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.convolution(signal.to(self.missing.dtype))
        x = x + ((~lead_mask).to(self.missing.dtype) @ self.missing)[:, :, None].to(x.dtype)
        mask = strided(mask, 2)
        x = F.relu(self.norm(x, mask))
        if self.max_pool:  # after a ReLU the zeros of padded samples are as good as none
            x, mask = F.max_pool1d(x, 3, 2, padding=1), strided(mask, 2)
            if mask is not None:  # the window behind the last valid one still reaches a valid sample
                x = torch.where(mask, x, 0.0)
        return x, mask


class ResidualBlock(nn.Module):
    """x + f(x): two convolutions of 3 samples, or, as a bottleneck, 1, 3 and 1. The first of 3 has the stride.

    x (B, inputs, T), mask bool (B, 1, T) or None -> (B, width or 4 width, ceil(T / stride)) and its mask.
    """

    def __init__(self, inputs: int, width: int, stride: int, norm: str, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (BOTTLENECK_EXPANSION if bottleneck else 1)
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.convolutions = nn.ModuleList(_convolution(*shape) for shape in shapes)
        self.norms = nn.ModuleList(channel_norm(norm, shape[1]) for shape in shapes)
        self.strides = [shape[3] for shape in shapes]
        self.shortcut, self.shortcut_norm = None, None
        if stride > 1 or inputs != outputs:
            self.shortcut = _convolution(inputs, outputs, 1, stride)
            self.shortcut_norm = channel_norm(norm, outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        branch, last = x, len(self.strides) - 1
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            mask = strided(mask, self.strides[i])
            branch = norm(convolution(branch), mask)
            branch = F.relu(branch) if i < last else branch
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), mask)
        return F.relu(x + branch), mask


class ResNet1d(EcgEncoder):
    """Twelve leads as channels -> one unit vector per record.

    As in He et al. (2016): four stages of basic blocks (18, 34) or bottlenecks (50, its stride on the middle
    convolution), widths 1, 2, 4, 8 times `width`, strides 1, 2, 2, 2, projection shortcuts where shapes change,
    convolutions without bias, their initialisation.
    As in MERL (Liu et al. 2024): kernels along time, a first convolution of 7 samples with stride 2 and no max-pooling,
    so that 10 s at 500 Hz become 313 tokens of 32 ms.
    Ours: GroupNorm in place of BatchNorm, a first convolution with a bias (see `Stem`), and pooling by one learned
    query per head. MERL's attention pooling is CLIP's, with position embeddings and a mean token.

    Features are the pooled last stage, tokens the last stage itself.

    A padded record gives what the record cut to its valid samples gives. Sizes (width 64, embedding_dim 256): 18 layers
    4.0 M, 34 7.4 M, 50 16.5 M.
    """

    Config: ClassVar[type[EncoderConfig]] = ResNet1dConfig

    def __init__(self, config: ResNet1dConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        bottleneck = config.depth == 50
        self.stem = Stem(config)
        self.blocks = nn.ModuleList()
        channels = config.width
        for stage, count in enumerate(BLOCKS[config.depth]):
            width = config.width * 2**stage
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(ResidualBlock(channels, width, stride, config.norm, bottleneck))
                channels = width * (BOTTLENECK_EXPANSION if bottleneck else 1)
        self.feature_width = self.token_width = channels
        self.pool = token_pooling(config.pooling, channels, config.heads)
        self.projection = nn.Linear(channels, config.embedding_dim)

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """As every encoder; N = ceil(T / 16) tokens, half as many with max_pool."""
        mask = None
        if valid_samples is not None:
            mask = (torch.arange(signal.shape[-1], device=signal.device) < valid_samples[:, None])[:, None]  # (B, 1, T)
        signal = normalise(signal, lead_mask, valid_samples, self.normalisation)
        x, mask = self.stem(signal, lead_mask, mask)
        for block in self.blocks:
            x, mask = block(x, mask)
        tokens = x.transpose(1, 2)  # (B, N, D)
        token_mask = lead_mask.any(dim=1, keepdim=True).expand(tokens.shape[:2])
        if mask is not None:
            token_mask = token_mask & mask[:, 0]
        features = self.pool(tokens, token_mask)
        embedding = F.normalize(self.projection(features).float(), dim=-1)
        output = EncoderOutput(embedding, features, valid_samples=valid_samples)
        return output._replace(tokens=tokens, token_mask=token_mask) if return_tokens else output
