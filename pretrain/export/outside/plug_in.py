"""An encoder as Python: the entry points of installed packages. Who installs a package has trusted its code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cardialign.data_shards.plugins import Table
from cardialign.pretrain.export.outside.contract import OutsideContract
from cardialign.pretrain.export.outside.model import OutsideModel
from cardialign.pretrain.export.usable import tensors_digest


def _check(thing: Any) -> str | None:
    if not callable(thing):
        return (
            f"it is of type {type(thing).__name__}; give a class or function without arguments that makes the encoder"
        )
    contract = getattr(thing, "contract", None)
    if not isinstance(contract, str | Path):
        return "it has no attribute `contract`, the path of its signal contract (YAML)"
    return None


OUTSIDE_ENCODERS = Table("outside_encoder", {}, check=_check)
"""Entry points of the group `cardialign.outside_encoders`, each a class (or function) with an attribute `contract`.

Called without arguments it makes the encoder, which is called with a batch in the contract's layout and gives (B, D).
An `nn.Module` is called with a tensor and can be fine-tuned; anything else gets a numpy array, and says by its
attribute `digest` which weights it has. `embed_text(list of texts) -> (n, D)` makes zero-shot evaluation possible.
"""


class PlugInModel(OutsideModel):
    untrainable = "a plug-in does not say how its weights began"

    def __init__(self, word: str, made: Any) -> None:
        super().__init__()
        self.word, self.name = word, f"outside:{word}"
        self.holder: list[Any] = [made]  # not registered as a part when it is no module
        self.module: nn.Module | None = made.eval() if isinstance(made, nn.Module) else None
        if isinstance(made, nn.Module):
            self.identity = tensors_digest(made.state_dict(), OUTSIDE_ENCODERS[word].encode())
        else:
            self.unlearnable = "it is a Python callable, not an nn.Module"
            digest = getattr(made, "digest", None)
            if not isinstance(digest, str) or not digest:
                raise self.unfit("it does not say which weights it has: it needs an attribute `digest` (a text)")
            self.identity = hashlib.sha256(f"{OUTSIDE_ENCODERS[word]} {digest}".encode()).hexdigest()

    def forward(self, values: Tensor) -> Any:
        with OUTSIDE_ENCODERS.blamed(self.word, "cannot embed"):
            if self.module is not None:
                return self.module(values)
            found = self.holder[0](values.cpu().numpy())
            return torch.from_numpy(np.asarray(found)).to(values.device)

    def embed_text(self, texts: list[str], contract: OutsideContract) -> np.ndarray:
        made: Any = self.holder[0] if self.module is None else self.module
        if not hasattr(made, "embed_text"):
            raise self.without_text("it has no embed_text")
        with OUTSIDE_ENCODERS.blamed(self.word, "cannot embed texts"):
            found = made.embed_text(texts)
            found = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found, dtype=np.float32)
        if found.shape != (len(texts), contract.embedding_dim):
            raise self.unfit(f"embed_text gives {found.shape} for {len(texts)} texts, embeddings have "
                             f"{contract.embedding_dim} numbers")  # fmt: skip
        return found


def open_plug_in(word: str) -> tuple[PlugInModel, Path]:
    """The model, and where its contract is. Raises UserError that names the package of one that is broken."""
    thing = OUTSIDE_ENCODERS.find(word)
    with OUTSIDE_ENCODERS.blamed(word, "cannot be made"):
        made = thing()
    return PlugInModel(word, made), Path(thing.contract)
