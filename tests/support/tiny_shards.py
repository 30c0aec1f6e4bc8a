"""A tiny real shard set with a text bank, and the runs that the loop tests start on it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import RunConfig, TextConfig, parse_config
from cardialign.pretrain.text.encoder import TextEncoder

RATE, SECONDS, RECORDS = 100.0, 2.5, 60
STATEMENTS = (
    ("Sinus rhythm", "Normal ECG"),
    ("Sinus bradycardia",),
    ("Atrial fibrillation",),
    ("Sinus rhythm", "Left bundle branch block"),
    ("Sinus tachycardia", "Low voltage"),
)


class TinySource:
    """Two records per patient; beat rate and amplitude follow the report, so that there is something to learn."""

    name = "tiny"
    root = Path(".")
    label_sets: tuple[str, ...] = ()

    def __init__(self, silent: int = 0) -> None:
        """silent: this many of the first records have no report."""
        self.silent = silent

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return [Entry(f"tiny-{i:03d}", f"tiny-{i:03d}", {"i": i}) for i in range(RECORDS)]

    def read(self, entry: Entry) -> EcgRecord:
        i = entry.meta["i"]
        kind = i % len(STATEMENTS)
        rng = np.random.default_rng(i)
        samples = int(RATE * SECONDS)
        seconds = np.arange(samples) / RATE
        beat = (
            np.sin(2 * np.pi * (1.0 + 0.5 * kind) * seconds + rng.uniform(0, 6))[None, :]
            * np.linspace(100, 900, 12)[:, None]
        )
        counts = (beat + rng.normal(0, 40, (12, samples))).astype(np.int16)
        return EcgRecord(
            key=entry.key,
            counts=counts,
            gain=np.full(12, 1000.0, dtype=np.float32),
            sampling_rate=RATE,
            statements=() if i < self.silent else (*STATEMENTS[kind], f"Record of group {i % 7}"),
            patient=f"p{i // 2}",
            fold=1 + i % 10,
            source=self.name,
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


class HashingEncoder:
    """A deterministic stand-in for MiniLM that loads no language model: the sum of one fixed random vector per word.

    It carries MiniLM's fingerprint, so that a run with the default report encoder finds its bank.
    """

    max_tokens = 16
    dim = 384

    def __init__(self) -> None:
        self.fingerprint = TextEncoder(TextConfig()).fingerprint

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), self.max_tokens), dtype=np.int32)
        lengths = np.zeros(len(texts), dtype=np.int32)
        for row, text in enumerate(texts):
            words = text.split()[: self.max_tokens] or ["empty"]
            ids[row, : len(words)] = [
                int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "little") for word in words
            ]
            lengths[row] = len(words)
        return ids, lengths

    def embed(self, texts: list[str]) -> np.ndarray:
        ids, lengths = self.tokenize(texts)
        rows = [
            sum(np.random.default_rng(int(word)).normal(size=self.dim) for word in row[:n])
            for row, n in zip(ids, lengths, strict=True)
        ]
        out = np.stack(rows).astype(np.float32)
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def describe(self) -> dict[str, Any]:
        return {"encoder": "hashing", "pooling": "sum", "fingerprint": self.fingerprint}


def make_shards(folder: Path, silent: int = 0) -> Path:
    build_shards(TinySource(silent), folder, SetPlan(SignalSpec(RATE, SECONDS), records_per_shard=20), workers=1)
    if silent < RECORDS:
        build_text_bank(ShardSet.open(folder), HashingEncoder())
    return folder


def config_for(shards: Path, **training: Any) -> RunConfig:
    return parse_config(
        {
            "name": "tiny",
            "seed": 3,
            "data": {"shards": str(shards), "threads": 1},
            "encoder": {
                "size": "tiny",
                "depth": 1,
                "width": 16,
                "heads": 2,
                "embedding_dim": 16,
                "patches": [{"kernel_ms": 200, "stride_ms": 200}],
            },
            "optimizer": {"lr": 3e-3},
            "training": {
                "global_batch": 13,
                "steps": 6,
                "precision": "fp32",
                "lead_dropout": 0.2,
                "checkpoint_every": 3,
                "log_every": 2,
                **training,
            },
        }
    )
