"""The operations of the encoder go through torch.export with a free batch size.

A consumer runs them without this package.
"""

from __future__ import annotations

import torch

from cardialign.kernels.attention import attention, attention_pool, rotation, turn_heads
from cardialign.kernels.patch_embed import PatchScaleParams, multi_scale_patch_embed, token_seconds, token_valid

GROUPS = [[0, 3, 4, 10, 11], [1, 2, 5]]


class SmallEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(0.1 * torch.randn(*shape, generator=generator))

        self.first, self.second = parameter(16, 5, 25), parameter(16, 3, 25)
        self.bias, self.ln_weight, self.ln_bias = parameter(2, 16), parameter(2, 16), parameter(2, 16)
        self.missing, self.query = parameter(12, 16), parameter(2, 8)

    def forward(self, signal: torch.Tensor, lead_mask: torch.Tensor, valid_samples: torch.Tensor) -> torch.Tensor:
        scale = PatchScaleParams(
            25, 12, [self.first, self.second], self.bias, self.ln_weight, self.ln_bias, self.missing
        )
        tokens = multi_scale_patch_embed(signal, lead_mask, [scale], GROUPS)[0][:, 0]
        count = tokens.shape[1]
        valid, seconds = token_valid(valid_samples, count, 25, 12), token_seconds(count, 25, 12, 500.0)
        heads = tokens.unflatten(-1, (2, 8))
        turned = turn_heads(torch.stack((heads, heads, heads), dim=2), rotation(seconds, 2, 8, tokens.dtype))
        mixed = attention(*(part.transpose(1, 2) for part in turned), valid)
        return attention_pool(self.query, mixed.transpose(1, 2).flatten(2), valid)


def test_the_exported_program_gives_the_same_at_another_batch_size() -> None:
    encoder, batch = SmallEncoder().eval(), torch.export.Dim("batch")
    example = (torch.randn(3, 12, 300), torch.rand(3, 12) < 0.7, torch.tensor([300, 10, 200]))
    program = torch.export.export(encoder, example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch})).module()
    other = (torch.randn(5, 12, 300), torch.rand(5, 12) < 0.7, torch.tensor([300, 0, 100, 299, 24]))
    assert torch.allclose(program(*other), encoder(*other), atol=1e-6)
