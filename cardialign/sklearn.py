"""Encoders in scikit-learn: `from cardialign.sklearn import EcgEmbedder`."""

from __future__ import annotations

from cardialign.pretrain.export.embedder import EcgEmbedder

__all__ = ["EcgEmbedder"]
