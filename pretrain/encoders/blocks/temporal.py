"""The temporal encoder of one patch scale: pre-norm transformer blocks with rotary positions in seconds.

One encoder per scale, shared by all lead groups (the groups are folded into the batch axis). What only depends on where
tokens stand is computed once per forward pass and handed to every block (`Sequences`). Tokens are (B, N, D), or (M, D)
when the sequences are packed back to back. Legend: B sequences, N tokens, M tokens of all sequences, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.kernels.attention import (
    BucketPlan,
    Rotation,
    attention,
    pack,
    packed_attention,
    plan_buckets,
    rotation,
    turn_heads,
    unpack,
    weigh_keys,
)
from cardialign.pretrain.encoders.blocks.age_film import AgeFilm, Ages


def head_problems(width: int, heads: int, mlp_ratio: float = 1.0, of: str = "") -> list[str]:
    """What keeps `heads` from sharing `width`, or a block from having an MLP, each as "what is wrong; what to do".

    Empty when nothing does. of: what stands before `width`, `heads` and `mlp_ratio` in the user's keys.
    """
    if round(width * mlp_ratio) < 1:
        return [f"{of}mlp_ratio {mlp_ratio:g} of {of}width {width} leaves no unit; choose a larger one"]
    if width % heads:
        return [f"{of}width {width} is not a multiple of {of}heads {heads}; choose another {of}width or {of}heads"]
    if (width // heads) % 2:
        size = f"{of}width / {of}heads = {width // heads}"
        return [f"{size} is odd; choose an even head size (rotary positions turn pairs)"]
    return []


class PackedSequences(NamedTuple):
    """cu_seqlens int32 (B + 1,), the longest length,
    the sequence of every token int64 (M,), and the plan of the SDPA path (CPU only).
    """

    cu_seqlens: Tensor
    max_seqlen: int
    sequence: Tensor
    plan: BucketPlan | None


class Sequences(NamedTuple):
    """What every block needs to know of the tokens' places:
    the rotary table, and a key mask bool (B, N) or the packed sequences, or neither.

    key_weight: how much each token counts as a key, (B, N) or (M,); None: all alike.
    """

    table: Rotation
    key_mask: Tensor | None = None
    packed: PackedSequences | None = None
    key_weight: Tensor | None = None

    def per_token(self, per_sequence: Tensor) -> Tensor:
        """(B,) -> what multiplies tokens."""
        return per_sequence[:, None, None] if self.packed is None else per_sequence[self.packed.sequence][:, None]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per sequence and rescales the others.

    Identity in evaluation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, sequences: Sequences) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        count = branch.shape[0] if sequences.packed is None else len(sequences.packed.cu_seqlens) - 1
        keep = torch.rand(count, device=branch.device) >= self.rate
        return branch * sequences.per_token(keep.to(branch.dtype)) / (1.0 - self.rate)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each sequence: (B, N, D) -> (B, N, D), or packed (M, D) -> (M, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, sequences: Sequences) -> Tensor:
        q, k, v = turn_heads(
            self.qkv(tokens).unflatten(-1, (3, self.heads, -1)), sequences.table
        )  # (B, N, H, Dh) or (M, H, Dh)
        width = q.shape[-1]
        if sequences.key_weight is not None:
            q, k, v = weigh_keys(q, k, v, sequences.key_weight)
        if sequences.packed is not None:
            cu_seqlens, longest, _, plan = sequences.packed
            mixed = packed_attention(q, k, v, cu_seqlens, longest, plan=plan)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            mixed = attention(q, k, v, sequences.key_mask).transpose(1, 2)
        return self.out(mixed[..., :width].flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    Dropout and drop path on both branches.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, sequences: Sequences) -> Tensor:
        tokens = tokens + self.drop_path(
            self.dropout(self.attention(self.attention_norm(tokens), sequences)), sequences
        )
        mlp = self.contract(F.gelu(self.expand(self.mlp_norm(tokens))))
        return tokens + self.drop_path(self.dropout(mlp), sequences)


class TemporalEncoder(nn.Module):
    """`depth` blocks and a final LayerNorm: tokens (B, N, D), seconds of the patch centres -> (B, N, D).

    Drop path grows linearly with depth.
    seconds (N,), or (B, N) where each sequence holds other patches: a masked autoencoder's kept ones.
    key_mask bool (B, N): False = the token of padded samples or of a missing lead group, None = all valid. `dense`
    computes such tokens, lets nobody attend to them, and what stands at their places afterwards means nothing; `packed`
    leaves them out and puts zeros there. All other tokens are equal. `packed` waits for the device once per call, and
    dropout (not drop path) draws other numbers.
    key_weight (B, N): how much a token counts as a key, in every block (`weigh_keys`); None: all alike.
    ages: of the B sequences, which the gate behind every block reads once `gate` was called; None: none is known.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        drop_path: float,
        attention: str = "dense",
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.packs = heads, width // heads, attention == "packed"
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.gates: nn.ModuleList | None = None  # a class attribute would hide what `gate` puts there

    def gate(self) -> None:
        """Put an age gate behind every block."""
        self.gates = nn.ModuleList(AgeFilm(self.heads * self.head_width) for _ in self.blocks)

    def forward(
        self,
        tokens: Tensor,
        seconds: Tensor,
        key_mask: Tensor | None,
        key_weight: Tensor | None = None,
        ages: Ages | None = None,
    ) -> Tensor:
        if key_mask is not None and self.packs and not torch.compiler.is_compiling():  # a traced graph has one shape
            return self._packed(tokens, seconds, key_mask, key_weight, ages)
        heads = (
            self.heads if seconds.ndim == 1 else 1
        )  # a table of all heads per sequence would be as large as the tokens
        table = rotation(seconds, heads, self.head_width, tokens.dtype)
        return self._blocks(tokens, Sequences(table, key_mask, key_weight=key_weight), ages)

    def _blocks(self, tokens: Tensor, sequences: Sequences, ages: Ages | None) -> Tensor:
        for at, block in enumerate(self.blocks):
            tokens = block(tokens, sequences)
            if self.gates is not None and ages is not None:
                tokens = self.gates[at](tokens, ages)
        return self.norm(tokens)

    def _packed(
        self, tokens: Tensor, seconds: Tensor, key_mask: Tensor, key_weight: Tensor | None, ages: Ages | None
    ) -> Tensor:
        B, N, _ = tokens.shape
        kept, cu_seqlens, longest, indices = pack(tokens, key_mask)
        plan = plan_buckets(cu_seqlens) if tokens.device.type == "cpu" else None
        places = seconds[indices % N] if seconds.ndim == 1 else seconds.flatten()[indices]
        table = rotation(places, 1, self.head_width, tokens.dtype)
        weight = None if key_weight is None else key_weight.flatten()[indices]
        packed = PackedSequences(cu_seqlens, longest, indices // N, plan)
        sequences = Sequences(table, packed=packed, key_weight=weight)
        if ages is not None:
            ages = Ages(ages.scaled[packed.sequence], ages.known[packed.sequence])
        return unpack(self._blocks(kept, sequences, ages), indices, B, N)
