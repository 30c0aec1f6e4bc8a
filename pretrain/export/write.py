"""A finished encoder as a folder that a consumer can trust: safetensors, JSON, a `torch.export` program and the sha256 of every file. No pickle.

model.safetensors        ECG encoder            config.json            resolved run configuration (without paths)
text_head.safetensors    report head            signal_contract.json   leads, units, rate, length, normalisation, masks
text_encoder.safetensors only when it was trained  provenance.json     steps, data fingerprint, versions, text encoder
encoder.pt2              program for plain torch   digests.json        sha256 of all files above
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.integrity import DIGESTS, EXPORT_VERSION, file_digests, verify_export
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder
from cardialign.pretrain.export.program import save_program
from cardialign.pretrain.methods.base import Method
from cardialign.pretrain.text.encoder import TextEncoder

log = logging.getLogger(__name__)

__all__ = ["LoadedEncoder", "export_encoder", "export_from_checkpoint", "load_encoder", "verify_export"]

ECG, HEAD, TRANSFORMER = "ecg.", "text.head.", "text.transformer."


def export_encoder(
    config: RunConfig,
    model: Method | Mapping[str, Tensor],
    out: Path,
    *,
    training: Mapping[str, Any],
    spec: SignalSpec | None = None,
    program: bool = True,
) -> Path:
    """Write the encoder to the new folder `out` (it appears whole or not at all) and return it.

    model     the trained `Method`, or its state dict together with the `spec` of the shard set it was trained on.
    training  provenance: steps, data fingerprint, digest of consumed samples ... (JSON-able).
    program   also trace `encoder.pt2` (seconds for tiny, about a minute for base).
    Raises UserError when `out` exists or cannot be written, and when the weights are not finite or do not fit the configuration.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"export folder {out} exists already", "choose another name, or remove it first")
    if isinstance(model, Method):
        spec = SignalSpec(model.ecg.sampling_rate, model.ecg.samples / model.ecg.sampling_rate)
        model = model.state_dict()
    if spec is None:
        raise UserError(
            "a state dict does not say which signals it was trained on", "give spec=SignalSpec(...) of the shard set"
        )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
    encoder = _encoder(config, spec, state)

    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        _write_weights(temporary, state)
        contract = SignalContract.of(
            spec, config.data.normalisation, config.encoder.embedding_dim, config.training.lead_dropout
        )
        _write_json(temporary / "config.json", _portable(config))
        _write_json(temporary / "signal_contract.json", contract.to_dict())
        _write_json(temporary / "provenance.json", _provenance(config, state, training))
        if program:
            save_program(encoder, temporary / "encoder.pt2")
        _write_json(temporary / DIGESTS, {"version": EXPORT_VERSION, "files": file_digests(temporary)})
        temporary.rename(out)
    except OSError as error:
        raise UserError(
            f"export to {out} failed: {error.strerror or error}", "free space or choose a writable folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("export=%s files=%d bytes=%d", out, len(list(out.iterdir())), sum(p.stat().st_size for p in out.iterdir()))
    return out


def _encoder(config: RunConfig, spec: SignalSpec, state: Mapping[str, Tensor]) -> EcgEncoder:
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{len(broken)} weight tensors hold NaN or infinity (first: {broken[0]})", "export an earlier checkpoint"
        )
    encoder = create_encoder(config.encoder, spec, config.data.normalisation)
    try:
        encoder.load_state_dict(part(state, ECG))
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit the configuration: {error}",
            "export with the configuration and spec of the run that trained them",
        ) from None
    if not part(state, HEAD):
        raise UserError(f"the state dict has no {HEAD}* tensors", "give the state of the whole method")
    return encoder.eval()


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    for name, prefix in (("model", ECG), ("text_head", HEAD), ("text_encoder", TRANSFORMER)):
        tensors = {key: tensor.clone() for key, tensor in part(state, prefix).items()}
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})


def _portable(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration without what only made sense on the machine that trained (provenance keeps the data's fingerprint)."""
    values = config.resolved()
    values["data"] |= {"shards": None, "mixture": []}
    return values


def _provenance(config: RunConfig, state: Mapping[str, Tensor], training: Mapping[str, Any]) -> dict[str, Any]:
    packages = ("torch", "deepspeed", "transformers", "safetensors", "numpy")
    trained_text = part(state, TRANSFORMER) or None
    scale = state.get("logit_scale.log_scale")
    return {
        "training": dict(training),
        "parameters": {
            "ecg_encoder": sum(t.numel() for t in part(state, ECG).values()),
            "text_head": sum(t.numel() for t in part(state, HEAD).values()),
        },
        "temperature": None if scale is None else float(torch.exp(-scale.float()).item()),
        "text_encoder": TextEncoder(config.text, trained_text).describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def export_from_checkpoint(source: Path, out: Path, *, spec: SignalSpec | None = None, program: bool = True) -> Path:
    """Export the encoder of a training checkpoint, whatever ZeRO stage and world size wrote it. Returns `out`.

    source  a run directory (its newest verified checkpoint is taken) or one committed checkpoint folder (verified first).
    spec    signal spec of the training data; read from the run's shard set when not given.
    Raises UserError when there is no sound checkpoint, or the shard set is no longer where the run says and no spec was given.
    """
    from cardialign.pretrain.training.checkpoints import files as checkpoints
    from cardialign.pretrain.training.checkpoints.state import TrainerState

    source = Path(source)
    path: Path | None = source
    if (source / "checkpoints").is_dir():
        path = checkpoints.newest_verified(source)
        if path is None:
            raise UserError(
                f"run {source} has no sound checkpoint", "train until the first checkpoint, or give the folder of one"
            )
    else:
        checkpoints.verify(source)
    assert path is not None
    trainer = TrainerState.read(path)
    config = parse_config(trainer.config, f"configuration of {path}")
    training = {
        "steps": trainer.step,
        "sample_digest": trainer.digest,
        "selection_fingerprint": trainer.selection_fingerprint,
        "world_size": trainer.world_size,
        "checkpoint": path.name,
    }
    return export_encoder(
        config, checkpoint_weights(path), out, training=training, spec=spec or _spec_of(config), program=program
    )


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """fp32 state dict of the whole model from a committed checkpoint. Verify the checkpoint first: DeepSpeed's files are pickles."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from cardialign.pretrain.training.checkpoints.state import TAG

    if not list((path / TAG).glob("*_optim_states.pt")):  # ZeRO stage 0 keeps the model whole in one file
        return torch.load(path / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # it prints, and draws progress bars
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG))


def _spec_of(config: RunConfig) -> SignalSpec:
    from cardialign.pretrain.training.data import open_sets

    try:
        return open_sets(config.data).spec
    except UserError as error:
        raise UserError(
            f"the run's shards are not there, so their sampling rate and length are unknown: {error.problem}",
            "give spec=SignalSpec(...)",
        ) from None
