"""Feature hashing of words: a real, deterministic text encoder without weights, for what is built on embeddings."""

from __future__ import annotations

import hashlib
import re

import numpy as np


class HashingEncoder:
    """`calls` counts the reports it was given; another name is another encoder."""

    def __init__(self, name: str = "hashing", dim: int = 32, max_tokens: int = 12) -> None:
        self.fingerprint, self.dim, self.max_tokens, self.calls = name, dim, max_tokens, 0

    def _word_ids(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        return [
            int.from_bytes(hashlib.sha256(f"{self.fingerprint} {word}".encode()).digest()[:4], "little") % 30_000 + 1
            for word in words
        ]

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), self.max_tokens), dtype=np.int32)
        rows = [self._word_ids(text)[: self.max_tokens] for text in texts]
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids, np.array([len(row) for row in rows])

    def embed(self, texts: list[str]) -> np.ndarray:
        self.calls += len(texts)
        out = np.ones((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in self._word_ids(text):
                out[i, word % self.dim] += 1.0
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def describe(self) -> dict:
        return {"id": self.fingerprint, "pooling": "sum"}
