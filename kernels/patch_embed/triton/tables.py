"""Integer tables that let one kernel serve every lead group and scale.

Where each weight column reads the signal, and which tokens a program makes. A block is one (scale, group), scale by
scale. A column is one (lead, kernel sample) of a block; blocks are padded to a multiple of `columns`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from cardialign.kernels.patch_embed.geometry import token_count

Sizes = tuple[tuple[int, int], ...]
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PatchTables:
    """int32 tables on the device, and the host's copy of the sizes the launches need.

    offset, lead: (columns,) sample offset in a record (-1 = padding) and lead.
    tile: (tiles, 8) first token, tokens of the scale, stride, padded features, first column, block, tokens of all
    scales before, 0.
    block: (S * G, 2) padded features, first column.
    group: (G, 1 + longest) number of leads, leads.
    chunk: (columns / step, 4) group, features, first feature, features of the scale's groups before.
    """

    offset: Tensor
    lead: Tensor
    tile: Tensor
    block: Tensor
    group: Tensor
    chunk: Tensor
    columns: int
    tokens: tuple[int, ...]
    scale_columns: tuple[tuple[int, int], ...]
    padding: tuple[int, ...]

    @property
    def tokens_before(self) -> list[int]:
        """Tokens of one group in all scales before scale s, and in all scales at the end."""
        return [sum(self.tokens[:s]) for s in range(len(self.tokens) + 1)]


@functools.lru_cache(maxsize=64)
def patch_tables(
    samples: int, sizes: Sizes, groups: Groups, tile_tokens: int, step: int, device: torch.device
) -> PatchTables:
    """Tables for signals of `samples` samples.

    sizes: ((kernel, stride), ...) in samples. tile_tokens: tokens of a tile. step: columns of a chunk.
    """
    offset: list[int] = []
    lead: list[int] = []
    tile: list[list[int]] = []
    block: list[list[int]] = []
    chunk: list[list[int]] = []
    padding: list[int] = []
    tokens: list[int] = []
    scale_columns: list[tuple[int, int]] = []
    for kernel, stride in sizes:
        count = token_count(samples, kernel, stride)
        begin, features_before = len(offset), 0
        for group, leads in enumerate(groups):
            features = kernel * len(leads)
            padded = -(-features // step) * step
            first, number = len(offset), len(block)
            tile += [
                [start, count, stride, padded, first, number, sum(tokens), 0] for start in range(0, count, tile_tokens)
            ]
            chunk += [[group, features, start, features_before] for start in range(0, padded, step)]
            block.append([padded, first])
            padding.append(padded - features)
            offset += [one * samples + k for one in leads for k in range(kernel)] + [-1] * (padded - features)
            lead += [one for one in leads for _ in range(kernel)] + [0] * (padded - features)
            features_before += features
        tokens.append(count)
        scale_columns.append((begin, len(offset)))
    longest = max(len(leads) for leads in groups)
    group_rows = [[len(leads), *leads, *[0] * (longest - len(leads))] for leads in groups]

    def table(rows: list) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32).to(device)

    return PatchTables(
        offset=table(offset),
        lead=table(lead),
        tile=table(tile),
        block=table(block),
        group=table(group_rows),
        chunk=table(chunk),
        columns=len(offset),
        tokens=tuple(tokens),
        scale_columns=tuple(scale_columns),
        padding=tuple(padding),
    )
