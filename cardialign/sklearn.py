"""Encoders in scikit-learn: `from cardialign.sklearn import EcgEmbedder`."""

from __future__ import annotations

from cardialign.data_shards.extras import needed_by

with needed_by("cardialign.sklearn", "sklearn"):
    from cardialign.pretrain.export.embedder import EcgEmbedder

__all__ = ["EcgEmbedder"]
