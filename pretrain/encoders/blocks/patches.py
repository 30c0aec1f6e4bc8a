"""The parameters of the multi-scale patch embedding; the maths lives in `cardialign.kernels.patch_embed`."""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.kernels.patch_embed import PatchScaleParams, multi_scale_patch_embed
from cardialign.pretrain.config import Milliseconds, Strict, refuse


class PatchScale(Strict):
    """One parallel patch embedding: kernel and stride in milliseconds (they may overlap: stride < kernel)."""

    kernel_ms: Milliseconds
    stride_ms: Milliseconds

    @model_validator(mode="after")
    def _covers_the_signal(self) -> PatchScale:
        if self.stride_ms > self.kernel_ms:
            refuse(
                [
                    f"stride_ms {self.stride_ms:g} is longer than kernel_ms {self.kernel_ms:g}: "
                    "samples between patches would be skipped; "
                    f"set stride_ms to {self.kernel_ms:g} or less"
                ]
            )
        return self


def samples_of(scale: PatchScale, sampling_rate: float, samples: int) -> tuple[int, int]:
    """(kernel, stride) in samples at `sampling_rate` Hz.

    Raises UsageError when a patch is shorter than a sample or longer than the record.
    """
    kernel, stride = (round(ms * sampling_rate / 1000.0) for ms in (scale.kernel_ms, scale.stride_ms))
    if stride < 1 or kernel > samples:
        what = "shorter than one sample" if stride < 1 else "longer than the record"
        raise UsageError(
            f"encoder.patches: kernel_ms {scale.kernel_ms:g} with stride_ms {scale.stride_ms:g} is {what} "
            f"({samples} samples at {sampling_rate:g} Hz)",
            f"choose stride_ms of at least {1000.0 / sampling_rate:g} "
            f"and kernel_ms of at most {1000.0 * samples / sampling_rate:g}",
        )
    return kernel, stride


class PatchEmbedding(nn.Module):
    """Strided patch embedding of every lead group at every scale, with a learned embedding for each missing lead.

    Per scale s: weights per group (D, L_g, K_s), bias and LayerNorm per group (G, D), missing-lead embedding (12, D).
    They sit on this module itself (not on children), so that ZeRO-3 gathers them when this forward runs.
    """

    def __init__(self, scales: list[tuple[int, int]], groups: list[list[int]], width: int) -> None:
        super().__init__()
        self.scales, self.groups = scales, groups
        for s, (kernel, _) in enumerate(scales):
            for g, leads in enumerate(groups):
                weight = torch.randn(width, len(leads), kernel) * 2.0 * (len(leads) * kernel) ** -0.5
                self.register_parameter(f"weight_{s}_{g}", nn.Parameter(weight))
            # The LayerNorm after the projection would forget the amplitude of a patch, and blow up the noise of a quiet
            # one; a bias of about the size of a projected wave (mV) keeps both: voltage is then the angle between
            # projection and bias.
            self.register_parameter(f"bias_{s}", nn.Parameter(torch.randn(len(groups), width) * 0.5))
            self.register_parameter(f"norm_weight_{s}", nn.Parameter(torch.ones(len(groups), width)))
            self.register_parameter(f"norm_bias_{s}", nn.Parameter(torch.zeros(len(groups), width)))
            self.register_parameter(f"missing_{s}", nn.Parameter(torch.randn(len(STANDARD_LEADS), width) * 0.02))

    def forward(self, signal: Tensor, lead_mask: Tensor) -> list[Tensor]:
        """Normalised signal (B, 12, T), lead_mask bool (B, 12) -> per scale tokens (B, G, N_s, D)."""
        parameters = [
            PatchScaleParams(
                kernel=kernel,
                stride=stride,
                weights=[getattr(self, f"weight_{s}_{g}") for g in range(len(self.groups))],
                bias=getattr(self, f"bias_{s}"),
                ln_weight=getattr(self, f"norm_weight_{s}"),
                ln_bias=getattr(self, f"norm_bias_{s}"),
                missing=getattr(self, f"missing_{s}"),
            )
            for s, (kernel, stride) in enumerate(self.scales)
        ]
        return multi_scale_patch_embed(signal.to(parameters[0].bias.dtype), lead_mask, parameters, self.groups)
