"""Who is probed: an encoder that stays as it is, and the floors beside it, each as features of the same records.

Legend: n records, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import EmbeddedSet, EmbedOptions, Progress, embed_set
from cardialign.pretrain.evaluation.probing.hand_features import filled, hand_features
from cardialign.pretrain.evaluation.probing.random_kernels import RandomKernels
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.windows import mean_over_windows
from cardialign.pretrain.export.usable import UsableEncoder

FLOORS = ("untrained", "random-kernels", "hand-features")


@dataclass(frozen=True)
class System:
    """features float32 (n, F), or (n, W, F) of pieces, in the order of the task's rows.

    digest: of the weights they come from, None without.
    """

    name: str
    features: np.ndarray
    digest: str | None = None


def systems(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: ProbeTask,
    floors: tuple[str, ...] = FLOORS,
    seed: int = 0,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> list[System]:
    """The encoder first, then each floor. Features of encoders are kept beside the set and computed once.

    Where a task cuts records into pieces, encoders read these; the floors without an encoder read whole records.

    Raises UsageError for an unknown floor, UserError when the records do not fit the encoder's signal contract.
    """
    unknown = [name for name in floors if name not in FLOORS]
    if unknown:
        raise UsageError(f"unknown floor {unknown[0]!r}", f"choose among {', '.join(FLOORS)}")
    options = options or EmbedOptions(task.first_seconds)
    encoders: dict[str, UsableEncoder] = {"encoder": encoder}
    if "untrained" in floors:
        encoders["untrained"] = encoder.untrained(seed)
    before = {name: each.weights_digest() for name, each in encoders.items()}
    window = None if task.crop is None else task.crop.seconds
    how = replace(options, first_seconds=task.first_seconds, with_features=True, window=window)
    embedded = embed_set(list(encoders.values()), shard_set, task.rows, how, progress)
    for name, each in encoders.items():
        assert each.weights_digest() == before[name], f"the weights of {name} changed while it was read"
    found = {
        name: System(name, _features(each, task), before[name])
        for name, each in zip(encoders, embedded, strict=True)
        if each.features is not None
    }
    found |= {each.name: each for each in _measured(shard_set, task, floors, seed, how)}
    return [found[name] for name in ("encoder", *FLOORS) if name in found]


def _features(embedded: EmbeddedSet, task: ProbeTask) -> np.ndarray:
    features = np.asarray(embedded.features)
    return mean_over_windows(features) if task.crop is not None and task.crop.average == "features" else features


def _measured(
    shard_set: ShardSet, task: ProbeTask, floors: tuple[str, ...], seed: int, options: EmbedOptions
) -> list[System]:
    """The floors without an encoder, in one pass over the records."""
    wanted = [name for name in ("random-kernels", "hand-features") if name in floors]
    if not wanted:
        return []
    kernels = RandomKernels(shard_set.spec, seed=seed)
    rate = shard_set.spec.sampling_rate
    shown = shard_set.spec.samples if task.first_seconds is None else round(task.first_seconds * rate)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in iterate_rows(shard_set, task.rows, options.batch_size, options.threads):
        valid = np.minimum(batch.valid_samples, shown).astype(np.int64)
        if "random-kernels" in parts:
            given = map(torch.from_numpy, (batch.signal, batch.lead_mask, valid))
            parts["random-kernels"].append(kernels.features(*given))
        if "hand-features" in parts:
            rows = zip(batch.signal, batch.lead_mask, valid.tolist(), strict=True)
            parts["hand-features"].append(np.stack([hand_features(*row, rate) for row in rows]))
    joined = {name: np.concatenate(each) for name, each in parts.items()}
    if "hand-features" in joined:
        joined["hand-features"] = filled(joined["hand-features"], task.parts.train)
    return [System(name, features) for name, features in joined.items()]
