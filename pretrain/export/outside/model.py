"""The bare computation of somebody else's encoder, and what is asked of it before anybody trusts its numbers.

Legend: B batch, D embedding_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.outside.contract import OutsideContract
from cardialign.pretrain.export.outside.signals import model_input

ALIKE = 1e-3
"""Relative difference between a record alone and among others, or once and again, that rounding explains."""


class OutsideModel(nn.Module):
    """A tensor in the contract's layout -> what the model gives: a tensor, several, or some by name.

    name: as its user knows it. identity: sha256 of its files. runtime: the version of what runs it, where that is not
    torch. unlearnable: why it cannot be trained, "" when it can;
    untrainable: why it has no counterpart with fresh weights. fixed_batch: the only number of records it takes.
    """

    name: str
    identity: str
    runtime: str = ""
    unlearnable: str = ""
    untrainable: str = ""
    fixed_batch: int | None = None

    def forward(self, values: Tensor) -> Any:
        raise NotImplementedError

    def fresh(self, seed: int) -> OutsideModel:
        """The same model with fresh weights. Raises UserError where it cannot be made anew."""
        raise UserError(f"{self.name} has no untrained counterpart: {self.untrainable}", "leave this floor out")

    def embed_text(self, texts: list[str], contract: OutsideContract) -> np.ndarray:
        """Texts -> (n, D), any length. Raises UserError without a text side."""
        raise self.without_text("it reads signals only")

    def without_text(self, why: str) -> UserError:
        learn = "" if self.unlearnable else ", `cardialign evaluate fine-tune`"
        return UserError(
            f"{self.name} has no text side: {why}, so nothing can be scored by words (zero-shot)",
            f"possible with it: `cardialign evaluate linear-probe`{learn}, `cardialign embed`; a text side "
            "is `text:` in the contract of a Hugging Face folder, or embed_text of a plug-in",
        )

    def unfit(self, problem: str) -> UserError:
        return UserError(f"{self.name}: {problem}", "correct its contract, or export the model again")


def features_of(model: OutsideModel, contract: OutsideContract, values: Tensor) -> Tensor:
    """The model's features (B, D) as the contract says: the named output, pooled. Raises UserError when it has none."""
    batch = model.fixed_batch
    if batch is None:
        return _pooled(model, contract, _chosen(model, contract, model(values)), len(values))
    parts = []
    for start in range(0, len(values), batch):
        rows = values[start : start + batch]
        filled = torch.cat([rows, rows[-1:].expand(batch - len(rows), *rows.shape[1:])])
        found = _pooled(model, contract, _chosen(model, contract, model(filled)), batch)
        parts.append(found[: len(rows)])
    return torch.cat(parts)


def _chosen(model: OutsideModel, contract: OutsideContract, given: Any) -> Tensor:
    wanted = contract.output
    if isinstance(given, Tensor):
        if wanted == "only":
            return given
        raise model.unfit(f"it gives one output, the contract says output: {wanted}; write `output: only`")
    if isinstance(given, Mapping):
        known = [str(key) for key, value in given.items() if isinstance(value, Tensor)]
        found = given.get(wanted)
    elif isinstance(given, tuple | list):
        known = [str(k) for k, value in enumerate(given) if isinstance(value, Tensor)]
        found = given[wanted] if isinstance(wanted, int) and wanted < len(given) else None
    else:
        raise model.unfit(f"it gives a {type(given).__name__}, not numbers")
    if not isinstance(found, Tensor):
        raise model.unfit(f"it has no output {wanted}; its outputs are {', '.join(known) or 'none'}")
    return found


def _pooled(model: OutsideModel, contract: OutsideContract, found: Tensor, rows: int) -> Tensor:
    shape = tuple(found.shape)
    if not found.is_floating_point():
        raise model.unfit(f"output {contract.output} is of type {found.dtype}, not a vector of real numbers")
    if contract.pooling != "none" and found.ndim > 2:
        axis = found.ndim - 1 if contract.feature_axis == "last" else 1
        tokens = found.movedim(axis, -1).flatten(1, -2)
        if contract.pooling == "first":
            found = tokens[:, 0]
        else:
            found = tokens.mean(dim=1) if contract.pooling == "mean" else tokens.amax(dim=1)
    elif contract.pooling != "none":
        raise model.unfit(f"output {contract.output} has shape {shape}: nothing to pool; write `pooling: none`")
    if tuple(found.shape) != (rows, contract.embedding_dim):
        way = f"pooling {contract.pooling}" + (f" over feature_axis {contract.feature_axis}" if found.ndim < 3 else "")
        raise model.unfit(
            f"output {contract.output} has shape {shape} for {rows} records, with {way} {tuple(found.shape)}; the "
            f"contract's embedding_dim says ({rows}, {contract.embedding_dim})"
        )
    return found.float()


def check_features(name: str, features: Tensor, values: Tensor) -> None:
    """Raises UserError for embeddings that say nothing: NaN, infinite, all 0 of a signal that is not, or the same for
    unlike signals."""
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        raise UserError(
            f"{name}: the embedding of record {int((~finite).int().argmax())} of a batch of {len(features)} is not "
            "finite",
            "compare units, normalisation and filter in its contract with how it was trained; half precision overflows",
        )
    silent = values.flatten(1).eq(0).all(dim=1)
    if (features.eq(0).all(dim=1) & ~silent).any():
        raise UserError(f"{name}: an embedding is 0 throughout", "name another output in its contract")
    unlike = len(features) > 1 and not torch.equal(values[0].expand_as(values), values)
    if unlike and torch.equal(features[0].expand_as(features), features):
        raise UserError(
            f"{name}: {len(features)} different signals have the same embedding",
            "name another output in its contract; compare units and normalisation with how it was trained",
        )


def try_out(model: OutsideModel, contract: OutsideContract, device: torch.device) -> None:
    """Does the model take what the contract says, and give it, each time the same, each record for itself?

    Two made-up signals are embedded. Raises UserError naming what does not fit.
    """
    given = model_input(contract, *_made_up(contract), contract.sampling_rate)
    values = torch.from_numpy(given).to(device)
    with torch.inference_mode():
        try:
            both = features_of(model, contract, values)
        except UserError:
            raise
        except Exception as error:  # of other people's models: whatever a wrong shape or dtype leads to
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise model.unfit(
                f"it does not take what its contract says, {tuple(values.shape)} of {contract.dtype} in layout "
                f"{contract.layout}: {first[-1]:.200}"
            ) from None
        check_features(model.name, both, values)
        again, alone = features_of(model, contract, values), features_of(model, contract, values[:1])
    size = both.abs().max()
    if (both - again).abs().max() > ALIKE * size:
        raise model.unfit("the same signal has another embedding the second time: it was exported in training mode")
    if (both[:1] - alone).abs().max() > ALIKE * size:
        raise model.unfit("a record's embedding depends on the records beside it: it was exported in training mode")


def _made_up(contract: OutsideContract) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two unlike signals of about 1 mV with all leads, whole."""
    samples = contract.spec.samples
    draw = np.random.default_rng(0)
    time = np.arange(samples) / contract.sampling_rate
    waves = [np.exp(-0.5 * ((time % beat - 0.2) / 0.03) ** 2) for beat in (0.8, 1.1)]
    leads = draw.uniform(0.2, 1.0, (2, len(STANDARD_LEADS), 1))
    signal = leads * np.stack(waves)[:, None] + draw.normal(0, 0.02, (2, len(STANDARD_LEADS), samples))
    return signal.astype(np.float32), np.ones((2, len(STANDARD_LEADS)), dtype=bool), np.full(2, samples)
