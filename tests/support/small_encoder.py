"""The main recipe, very small, of the real classes: 2 s at 100 Hz, one layer per scale, MiniLM as the report encoder."""

from __future__ import annotations

import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.methods.base import Method, create_method

SPEC = SignalSpec(100, 2)


def small_config(**changes) -> RunConfig:
    values = {
        "name": "small",
        "seed": 3,
        "encoder": {
            "size": "tiny",
            "width": 16,
            "depth": 1,
            "heads": 2,
            "embedding_dim": 8,
            "patches": [{"kernel_ms": 100, "stride_ms": 100}, {"kernel_ms": 400, "stride_ms": 200}],
        },
        "text": {"encoder": "minilm", "max_tokens": 32},
        "training": {"steps": 2, "global_batch": 8, "precision": "fp32", "lead_dropout": 0.1},
    }
    return parse_config({**values, **changes})


def small_model(seed: int = 0, **changes) -> tuple[RunConfig, Method]:
    torch.manual_seed(seed)
    config = small_config(**changes)
    return config, create_method(config, SPEC).eval()
