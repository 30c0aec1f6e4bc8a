"""What trains on the report side: exactly what the configuration says, and nothing that is frozen moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TextTower, transformer_layers


def test_frozen_tower_holds_only_the_head_and_reads_the_bank() -> None:
    tower = TextTower(TextConfig(), embedding_dim=32)
    assert {name.split(".")[0] for name, _ in tower.named_parameters()} == {"head"}
    out = tower(text_embedding=torch.nn.functional.normalize(torch.randn(5, 384), dim=-1))
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(5))
    with pytest.raises(UserError, match="frozen"):
        tower(token_ids=torch.ones(1, 4, dtype=torch.long), token_mask=torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(("mode", "trained"), [("partial", {"1"}), ("full", {"0", "1"})])
def test_gradient_reaches_exactly_the_layers_that_train(small_folder: Path, mode: str, trained: set[str]) -> None:
    config = TextConfig.model_validate({"encoder": str(small_folder), "trainable": mode, "train_layers": 1})
    tower = TextTower(config, embedding_dim=8).train()
    ids, lengths = TextEncoder(config).tokenize(["Sinus rhythm", "Atrial fibrillation with rapid ventricular response"])
    mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(lengths)[:, None]
    (tower(token_ids=torch.from_numpy(ids), token_mask=mask) * torch.randn(2, 8)).sum().backward()
    assert tower.transformer is not None
    layers = transformer_layers(tower.transformer)
    assert {str(i) for i, layer in enumerate(layers) if all(p.grad is not None for p in layer.parameters())} == trained
    expected = mode == "full"
    assert (tower.transformer.embeddings.word_embeddings.weight.grad is not None) == expected
    assert all(p.grad is not None for p in tower.head.parameters())
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad), (
        "a trainable weight that never gets a gradient"
    )


def test_partial_training_keeps_frozen_layers_deterministic(small_folder: Path) -> None:
    config = TextConfig.model_validate({"encoder": str(small_folder), "trainable": "partial", "train_layers": 1})
    tower = TextTower(config, embedding_dim=8).train()
    assert tower.transformer is not None
    frozen, trained = transformer_layers(tower.transformer)
    assert not any(m.training for m in frozen.modules()) and trained.training
