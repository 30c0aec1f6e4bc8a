"""How likely single texts and single ECGs belong together, by an encoder that was trained with a sigmoid loss.

    p = sigmoid(t cos(ecg, text) + b)
t and b are those that the loss learnt (`siglip`, `fg_clep`); the export says them in its provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
from cardialign.pretrain.export.loaded import LoadedEncoder
from cardialign.pretrain.export.usable import UsableEncoder

_BLOCK = 1 << 16
_TEXTS = 4096


def scale_and_bias(encoder: UsableEncoder) -> tuple[float, float]:
    """t and b. Raises UserError for an encoder whose cosines are no probabilities."""
    provenance: dict[str, Any] = encoder.provenance if isinstance(encoder, LoadedEncoder) else {}
    temperature, bias = (_finite(provenance.get(name)) for name in ("temperature", "bias"))
    if temperature is None or bias is None or temperature <= 0:
        raise UserError(
            f"encoder {encoder.digest[:24]} was not trained with a sigmoid loss, or its export does not say scale and "
            "bias: its cosines are no probabilities",
            "train with method fg_clep or siglip; export a run of an earlier release again: `cardialign export`",
        )
    return 1.0 / temperature, bias


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def pair_probabilities(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    texts: Sequence[str],
    rows: np.ndarray,
    text_of: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """float32 (P,): of the pairs of record rows[p] and statement texts[text_of[p]].

    rows, text_of int64 (P,). progress: in records, while these are embedded. Raises UserError as `scale_and_bias`, and
    where the encoder does not fit the records.
    """
    scale, bias = scale_and_bias(encoder)
    records, record_of = np.unique(rows, return_inverse=True)
    if not records.size:
        return np.empty(0, dtype=np.float32)
    said = [join_statements((text,), encoder.report_style) for text in texts]
    blocks = [encoder.embed_text(said[at : at + _TEXTS]) for at in range(0, len(said), _TEXTS)]
    vectors = np.concatenate(blocks).astype(np.float32)
    ecg = embed_set([encoder], shard_set, records, EmbedOptions(), progress)[0].embedding
    found = np.empty(len(rows), dtype=np.float32)
    for at in range(0, len(rows), _BLOCK):
        some = slice(at, at + _BLOCK)
        cosines = np.einsum("pd,pd->p", ecg[record_of[some]], vectors[text_of[some]], dtype=np.float64)
        found[some] = 1.0 / (1.0 + np.exp(-np.clip(scale * cosines + bias, -80.0, 80.0)))
    return found
