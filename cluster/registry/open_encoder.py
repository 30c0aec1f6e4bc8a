"""Encoders and single ECGs by the names that a command line gives: a folder or a registry reference, a WFDB record, a .npy file, a shard-set key."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import UNREADABLE_ARRAY
from cardialign.data_shards.record import STANDARD_LEADS

if TYPE_CHECKING:
    import numpy as np

    from cardialign.pretrain.export.loaded import LoadedEncoder

REGISTRY = "models:/"


@contextlib.contextmanager
def open_encoder(name: str, tracking_uri: str) -> Iterator[LoadedEncoder]:
    """The encoder in folder `name`, or behind `models:/NAME@ALIAS` (pulled to a temporary folder, digests checked). Raises UserError."""
    from cardialign.pretrain.export.loaded import load_encoder

    if not name.startswith(REGISTRY):
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(
                f"no encoder folder {name}", f"give the folder of `cardialign export`, or {REGISTRY}NAME@ALIAS"
            )
        yield load_encoder(folder)
        return
    from cardialign.cluster.registry.registry import pull

    with tempfile.TemporaryDirectory(prefix="encoder-") as scratch:
        pull(name, Path(scratch) / "encoder", tracking_uri)
        yield load_encoder(Path(scratch) / "encoder")


@dataclass(frozen=True)
class Signal:
    """One ECG as given: mV (L, T), the names of its L leads, Hz, where it came from. `lead_mask` None: every lead counts."""

    millivolts: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    origin: str
    lead_mask: np.ndarray | None = None
    valid_samples: int | None = None


def read_signal(
    path: Path | None,
    *,
    shards: Path | None = None,
    key: str | None = None,
    leads: str | None = None,
    sampling_rate: float | None = None,
) -> Signal:
    """A record of a shard set (`shards`, `key`), a .npy file in mV, or a WFDB record. Raises UserError naming the file and what is wrong."""
    if key is not None:
        assert shards is not None
        return _from_shards(shards, key)
    assert path is not None
    return _from_npy(path, leads, sampling_rate) if path.suffix == ".npy" else _from_wfdb(path)


def _from_shards(shards: Path, key: str) -> Signal:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    shard_set = ShardSet.open(shards)
    record = shard_set.read_record(int(shard_set.select(keys=[key]).rows[0]))
    return Signal(
        record.millivolts(), STANDARD_LEADS, record.sampling_rate, key, record.lead_mask, record.valid_samples
    )


def _from_npy(path: Path, leads: str | None, sampling_rate: float | None) -> Signal:
    import numpy as np

    if sampling_rate is None:
        raise UserError(f"{path} does not say its sampling rate", "give --sampling-rate")
    try:
        values = np.load(path, allow_pickle=False)
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as a .npy array: {error}",
            "save a float array (leads x samples) in mV with numpy.save",
        ) from None
    names = tuple(name.strip() for name in leads.split(",")) if leads else STANDARD_LEADS
    return Signal(values, names, sampling_rate, str(path))


def _from_wfdb(path: Path) -> Signal:
    from cardialign.data_shards.errors import RecordRejected
    from cardialign.data_shards.reading.wfdb.reader import read_wfdb

    record = path.with_suffix("") if path.suffix in (".hea", ".dat") else path
    try:
        signal = read_wfdb(record)
    except RecordRejected as rejected:
        raise UserError(
            f"{record} cannot be read: {rejected.detail}", "give a WFDB record (its .hea and .dat stand side by side)"
        ) from None
    millivolts = signal.counts / signal.gain[:, None]
    return Signal(millivolts.astype("float32"), tuple(signal.lead_names), float(signal.sampling_rate), str(record))


def embed_signal(encoder: LoadedEncoder, signal: Signal, allowed: dict[str, Any]) -> dict[str, Any]:
    """Embedding of one ECG and what it was made with. `allowed`: resample, crop, allow_missing_leads, derive_limb_leads. Raises UserError."""
    import numpy as np

    masks: dict[str, Any] = {}
    if signal.lead_mask is not None:
        masks["lead_mask"] = signal.lead_mask[None]
    if signal.valid_samples is not None:
        masks["valid_samples"] = np.array([signal.valid_samples])
    try:
        embedding = encoder.embed(
            signal.millivolts[None], sampling_rate=signal.sampling_rate, leads=signal.leads, **masks, **allowed
        )[0]
    except UserError as error:  # the library names its arguments; here they are options
        remedy = re.sub(r"\b([a-z_]+)=True\b", lambda match: "--" + match[1].replace("_", "-"), error.remedy)
        raise UserError(f"{signal.origin}: {error.problem}", remedy) from None
    return {
        "ecg": signal.origin,
        "leads": list(signal.leads),
        "sampling_rate": signal.sampling_rate,
        "encoder": encoder.digest,
        "dimensions": len(embedding),
        "embedding": [float(value) for value in embedding],
    }
