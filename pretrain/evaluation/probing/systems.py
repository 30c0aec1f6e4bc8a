"""Who is probed: an encoder that stays as it is, and the floors beside it, each as features of the same records.

Legend: n records, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import EmbeddedSet, EmbedOptions, Progress, embed_set, reader_of
from cardialign.pretrain.evaluation.probing.hand_features import filled, hand_features
from cardialign.pretrain.evaluation.probing.random_kernels import RandomKernels
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, Records
from cardialign.pretrain.evaluation.probing.tokens import Tokens, read_tokens
from cardialign.pretrain.evaluation.windows import mean_over_windows
from cardialign.pretrain.export.usable import UsableEncoder


@dataclass(frozen=True)
class ReadOptions:
    """progress: of the records of encoders; tokens: name of a system -> folder for its tokens, None = none are read.

    embed: batches and normalisation; the records say which seconds and pieces are read.
    """

    progress: Progress | None = None
    tokens: Callable[[str], Path] | None = None
    embed: EmbedOptions = field(default_factory=EmbedOptions)


FLOORS = ("untrained", "random-kernels", "hand-features")


@dataclass(frozen=True)
class System:
    """features float32 (n, F), or (n, W, F) of pieces, in the order of the task's rows.

    digest: of the weights they come from, None without; tokens: what an attention-pooled probe reads, where that was
    asked for.
    """

    name: str
    features: np.ndarray
    digest: str | None = None
    tokens: Tokens | None = None


def systems(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: ProbeTask,
    floors: tuple[str, ...] = FLOORS,
    seed: int = 0,
    options: ReadOptions | None = None,
) -> list[System]:
    """The encoder first, then each floor, for one task. Raises as `read_systems`."""
    return of_task(read_systems(encoder, task.records(shard_set), floors, seed, options), task)


def of_task(found: Sequence[System], task: ProbeTask, places: np.ndarray | None = None) -> list[System]:
    """What was read of more records (`places` of the task's among them), as the task's own.

    What hand features lack is filled from the task's training records.
    """
    out = []
    for each in found:
        features = each.features if places is None else each.features[places]
        tokens = each.tokens if each.tokens is None or places is None else each.tokens.at(places)
        features = filled(features, task.parts.train) if each.name == "hand-features" else features
        out.append(System(each.name, features, each.digest, tokens))
    return out


def floors_of(encoder: UsableEncoder, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The floors that are asked for; None: all that this encoder can have beside it."""
    return (
        asked if asked is not None else tuple(name for name in FLOORS if name != "untrained" or not encoder.untrainable)
    )


def check_systems(encoder: UsableEncoder, chosen: Records, floors: tuple[str, ...], tokens: bool) -> None:
    """Before anything is computed: whether `read_systems` can give all that. Raises as it does."""
    unknown = [name for name in floors if name not in FLOORS]
    if unknown:
        raise UsageError(f"unknown floor {unknown[0]!r}", f"choose among {', '.join(FLOORS)}")
    if "untrained" in floors and encoder.untrainable:
        encoder.untrained()
    if tokens and chosen.crop is not None:
        raise UserError(
            "the protocol cuts records into pieces; the attention-pooled probe reads the tokens of whole records",
            "leave --attention out, or choose a protocol that reads records whole",
        )
    reader_of(encoder.token_reader if tokens else encoder.reader, chosen.shard_set)


def read_systems(
    encoder: UsableEncoder,
    chosen: Records,
    floors: tuple[str, ...] = FLOORS,
    seed: int = 0,
    options: ReadOptions | None = None,
) -> list[System]:
    """Features of the encoder and of each floor. Those of encoders are kept beside the set and computed once.

    Where records are cut into pieces, encoders read these; the floors without an encoder read whole records.

    Raises UsageError for an unknown floor, UserError when the records do not fit the encoder's signal contract, it
    lacks what is asked for, or it gives a record numbers that are not finite.
    """
    options = options or ReadOptions()
    check_systems(encoder, chosen, floors, options.tokens is not None)
    encoders: dict[str, UsableEncoder] = {"encoder": encoder}
    if "untrained" in floors:
        encoders["untrained"] = encoder.untrained(seed)
    before = {name: each.weights_digest() for name, each in encoders.items()}
    how = replace(chosen.how(options.embed), with_features=True)
    embedded = embed_set(list(encoders.values()), chosen.shard_set, chosen.rows, how, options.progress)
    tokens = (
        {}
        if options.tokens is None
        else {name: read_tokens(each, chosen, options.tokens(name), how) for name, each in encoders.items()}
    )
    for name, each in encoders.items():
        assert each.weights_digest() == before[name], f"the weights of {name} changed while it was read"
    found = {
        name: System(name, _features(each, chosen), before[name], tokens.get(name))
        for name, each in zip(encoders, embedded, strict=True)
        if each.features is not None
    }
    found |= {each.name: each for each in _measured(chosen, floors, seed, how)}
    for name, system in found.items():
        if name != "hand-features":
            _check_finite(system, chosen)
    return [found[name] for name in ("encoder", *FLOORS) if name in found]


def _features(embedded: EmbeddedSet, chosen: Records) -> np.ndarray:
    features = np.asarray(embedded.features)
    return mean_over_windows(features) if chosen.crop is not None and chosen.crop.average == "features" else features


def _check_finite(system: System, chosen: Records) -> None:
    """Of pieces, one that is not used is NaN throughout; the first of a record always is."""
    finite = np.isfinite(system.features)
    whole = finite.all(axis=-1)
    if whole.ndim == 2:
        whole[:, 1:] |= ~finite[:, 1:].any(axis=-1)
        whole = whole.all(axis=1)
    broken = np.flatnonzero(~whole)
    if broken.size:
        row = int(chosen.rows[broken[0]])
        raise UserError(
            f"{system.name} gives {broken.size} of {len(chosen.rows)} records features that are not finite "
            f"(first: {chosen.shard_set.key(row)})",
            "look at that record with `cardialign shards inspect`, and at the weights of the encoder",
        )


def _measured(chosen: Records, floors: tuple[str, ...], seed: int, options: EmbedOptions) -> list[System]:
    """The floors without an encoder, in one pass over the records."""
    wanted = [name for name in ("random-kernels", "hand-features") if name in floors]
    if not wanted:
        return []
    spec = chosen.shard_set.spec
    kernels = RandomKernels(spec, seed=seed)
    rate = spec.sampling_rate
    shown = spec.samples if chosen.first_seconds is None else round(chosen.first_seconds * rate)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in iterate_rows(chosen.shard_set, chosen.rows, options.batch_size, options.threads):
        valid = np.minimum(batch.valid_samples, shown).astype(np.int64)
        if "random-kernels" in parts:
            given = map(torch.from_numpy, (batch.signal, batch.lead_mask, valid))
            parts["random-kernels"].append(kernels.features(*given))
        if "hand-features" in parts:
            rows = zip(batch.signal, batch.lead_mask, valid.tolist(), strict=True)
            parts["hand-features"].append(np.stack([hand_features(*row, rate) for row in rows]))
    return [System(name, np.concatenate(each)) for name, each in parts.items()]
