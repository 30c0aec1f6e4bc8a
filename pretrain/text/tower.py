"""The report side in training: the head that every run trains, and the transformer where it trains too.

Legend: n texts, N tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder, pool, read_tokens


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer layers of a Hugging Face encoder: its longest list of equal modules."""
    stacks = [
        m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1 and len({type(x) for x in m}) == 1
    ]
    if not stacks:
        raise UserError(
            f"text.trainable=partial: {type(model).__name__} has no list of layers", "use text.trainable=frozen or full"
        )
    return max(stacks, key=len)


def set_trainable(model: nn.Module, mode: str, train_layers: int) -> None:
    """`full`: everything trains. `partial`: only the last `train_layers` layers do, not the embeddings.

    MERL and MELP train MedCPT partly: the first 6 of its 12 layers are frozen. A pooler is never used and never trains.
    """
    model.requires_grad_(mode == "full")
    if mode == "partial":
        layers = list(transformer_layers(model))
        if train_layers > len(layers):
            raise UserError(
                f"text.train_layers is {train_layers}, the report encoder has {len(layers)} layers",
                f"set text.train_layers to {len(layers)} or less, or text.trainable to full",
            )
        for layer in layers[-train_layers:]:
            layer.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if "pooler" in name:
            parameter.requires_grad_(False)


class TextHead(nn.Module):
    """Pooled report embedding (n, d) -> shared space float32 (n, embedding_dim), L2-normalised.

    LayerNorm, then a two-layer MLP beside a linear path.
    """

    def __init__(self, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, embedding_dim)
        self.expand = nn.Linear(dim, 2 * embedding_dim)
        self.contract = nn.Linear(2 * embedding_dim, embedding_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        x = self.norm(pooled.to(self.norm.weight.dtype))
        return F.normalize((self.linear(x) + self.contract(F.gelu(self.expand(x)))).float(), dim=-1)


class TanhHead(nn.Module):
    """Pooled report embedding (n, d) -> tanh(linear(LayerNorm(x))), a pooler as BERT and D-BETA have one.

    `features` are these numbers, float32 (n, embedding_dim) within -1..1; `forward` has them L2-normalised. The
    LayerNorm forgets the length of x: the unit vectors of the text bank give what a run saw.
    """

    def __init__(self, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, embedding_dim)

    def features(self, pooled: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.norm(pooled.to(self.norm.weight.dtype))).float())

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.features(pooled), dim=-1)


HEADS: tuple[type[TextHead] | type[TanhHead], ...] = (TextHead, TanhHead)


def head_of(weights: Mapping[str, Tensor]) -> type[TextHead] | type[TanhHead]:
    """The class whose weights have these names; where none has, that of the main recipe."""
    made = {kind: set(kind(1, 1).state_dict()) for kind in HEADS}
    return next((kind for kind, names in made.items() if names == set(weights)), TextHead)


class TextTower(nn.Module):
    """The text side in training, by `text.trainable`.

    `frozen`: only the head; its input comes from the text bank and no language model is in the process.
    `partial` and `full`: the transformer is here and reads token ids.
    """

    def __init__(
        self, config: TextConfig, embedding_dim: int, head: type[TextHead] | type[TanhHead] = TextHead
    ) -> None:
        super().__init__()
        encoder = TextEncoder(config)
        self.pooling, self.mode = encoder.pooling, config.trainable
        self.transformer: nn.Module | None = None
        if config.trainable != "frozen":
            self.transformer = encoder.load_transformer()
            set_trainable(self.transformer, config.trainable, config.train_layers)
        self.head = head(encoder.dim, embedding_dim)

    def train(self, mode: bool = True) -> TextTower:
        """A partly frozen transformer keeps its frozen layers' dropout off, as its authors' features had."""
        super().train(mode)
        if self.transformer is not None and self.mode == "partial":
            for module in self.transformer.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
        return self

    def states(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Token ids (n, N), mask bool (n, N) -> what the trained transformer makes of each token, (n, N, d).

        Raises UserError in frozen mode.
        """
        if self.transformer is None:
            raise UserError(
                "text.trainable=frozen keeps no language model in training",
                "give text_embedding from the text bank, not token_ids",
            )
        return read_tokens(self.transformer, token_ids, token_mask, self.pooling)

    def pooled(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """The same -> unit vectors (n, d)."""
        return pool(self.states(token_ids, token_mask), token_mask, self.pooling)

    def forward(
        self, text_embedding: Tensor | None = None, token_ids: Tensor | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """The bank's embedding (n, d), or token ids (n, N) and mask (n, N) -> (n, embedding_dim), L2-normalised."""
        if text_embedding is None:
            assert token_ids is not None and token_mask is not None, "give text_embedding, or token_ids and token_mask"
            text_embedding = self.pooled(token_ids, token_mask)
        return self.head(text_embedding)
