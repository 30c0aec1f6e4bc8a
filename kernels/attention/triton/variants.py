"""The launches of the rotary turn that stand for all, for the compile check on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cardialign.kernels.attention.triton.turn import turn_launch
from cardialign.kernels.triton_support.launch import Variant


def compile_variants() -> Iterator[Variant]:
    """Both directions, both layouts of the table, both architectures; it multiplies element by element."""
    for architecture, dtype, table_heads, back in (
        (90, torch.bfloat16, 1, False),
        (90, torch.bfloat16, 8, True),
        (80, torch.float16, 8, False),
    ):
        qkv = torch.empty((4, 399, 3, 8, 64), dtype=dtype, device="meta")
        table = torch.empty((399, 1, table_heads, 64), dtype=torch.float32, device="meta")
        x = qkv[..., :2, :, :]
        launch = turn_launch(x, table, table, torch.empty_like(x), back)
        way = "back" if back else "forth"
        name = f"rotary {way} {str(dtype).removeprefix('torch.')}, table of {table_heads} head{'s' * (table_heads > 1)}"
        yield launch.variant(name, architecture, "FFMA")
