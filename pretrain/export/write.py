"""A finished encoder as a folder that a consumer can trust: no pickle, and the sha256 of every file.

model.safetensors          ECG encoder
text_head.safetensors      report head; only of an encoder that was trained with reports
text_encoder.safetensors   report encoder; only when it was trained
scorings.safetensors       other ways to score texts than the cosine; only of a method that has some
encoder.pt2                program for plain torch; refuses by NaN what is no ECG in mV
encoder.onnx               the same for onnxruntime; only where it was asked for (`doors.onnx`)
golden.safetensors         ten ECGs and the embeddings that must come out (`doors.golden`)
trained_on.safetensors     digests of the patients and recordings that it was trained on, where its shards were there
config.json                resolved run configuration (without paths), and the type by which transformers knows it
signal_contract.json       leads, units, rate, length, normalisation, masks
exposure.json              facts and root of its exposure certificate, exposure.safetensors the lists (`exposure`)
provenance.json            steps, data fingerprint, what it was trained on, versions, text encoder
sbom.cdx.json              the packages it was made with, as a CycloneDX bill of materials (`bill`)
README.md                  the model card: first what nothing here can check, last how to load it (`model_card`)
missingness.json           what it is worth without some leads; only where it was measured (`missing_card`)
digests.json               sha256 of all files above
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import commit_folder, sha256_of
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.config.named import MODEL_TYPE
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.export.bill import bill_of_materials
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.doors.golden import write_golden
from cardialign.pretrain.export.exposure.certificate import write_certificate
from cardialign.pretrain.export.exposure.salt import CertificateSalt
from cardialign.pretrain.export.model_card import model_card
from cardialign.pretrain.export.program import save_program
from cardialign.pretrain.export.trained_on import TrainedOn
from cardialign.pretrain.methods.base import Exported, method_class
from cardialign.pretrain.run.integrity import BILL, CARD, MODEL, write_digests
from cardialign.pretrain.run.layout import check_text
from cardialign.pretrain.text.encoder import TextEncoder

log = logging.getLogger(__name__)


def export_encoder(
    config: RunConfig,
    state: Mapping[str, Tensor],
    out: Path,
    *,
    training: Mapping[str, Any],
    spec: SignalSpec,
    program: bool = True,
    trained_on: TrainedOn | None = None,
    salt: CertificateSalt | None = None,
) -> Path:
    """Write the encoder to the new folder `out` (it appears whole or not at all) and return it.

    state     state dict of the whole trained model; the method's `exported` says what is taken of it.
    training  provenance: steps, data fingerprint, digest of consumed samples ... (JSON-able).
    spec      of the signals that it was trained on.
    program   also trace `encoder.pt2` (seconds for tiny, about a minute for base).
    trained_on  the records it has seen, for evaluations; None when nobody knows.
    salt  of the exposure certificate; None: without one.
    Raises UserError when `out` exists or cannot be written, and when the weights are not finite or do not fit the
    configuration.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"export folder {out} exists already", "choose another name, or remove it first")
    check_text(out)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _check_finite(state)
    parts = method_class(config).exported(state)
    encoder = _encoder(config, spec, parts.encoder)

    try:
        with commit_folder(out) as temporary:
            _write_weights(temporary, parts)
            contract = SignalContract.of_run(spec, config, encoder.reads_age)
            settings = {"model_type": MODEL_TYPE, **_portable(config)}
            _write_json(temporary / "config.json", settings)
            _write_json(temporary / "signal_contract.json", contract.to_dict())
            provenance = _provenance(config, state, parts, training)
            if trained_on is not None:
                provenance["trained_on"] = trained_on.to_dict()
                trained_on.write(temporary)
            _write_json(temporary / "provenance.json", provenance)
            (temporary / BILL).write_bytes(bill_of_materials(sha256_of(temporary / MODEL)))
            if trained_on is not None and salt is not None:
                write_certificate(temporary, trained_on, training, salt)
            write_golden(encoder, contract, temporary)
            if program:
                _write_program(encoder, temporary / "encoder.pt2")
            card = model_card(settings, contract.to_dict(), provenance, program)
            (temporary / CARD).write_text(card, encoding="utf-8")
            write_digests(temporary)
    except (OSError, SafetensorError, _DiskError) as error:
        raise UserError(f"export to {out} failed: {error}", "free space or choose a writable folder") from error
    log.info("export=%s files=%d bytes=%d", out, len(list(out.iterdir())), sum(p.stat().st_size for p in out.iterdir()))
    return out


class _DiskError(Exception):
    """The disk did not take a file that torch wrote."""


def _write_program(encoder: EcgEncoder, path: Path) -> None:
    try:
        save_program(encoder, path)
    except RuntimeError as error:  # torch's writer has no error of its own for a full disk
        if "PytorchStreamWriter" not in str(error):
            raise
        raise _DiskError(f"{path.name}: {str(error).splitlines()[0]}") from error


def _check_finite(state: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{len(broken)} weight tensors hold NaN or infinity (first: {broken[0]})", "export an earlier checkpoint"
        )


def _encoder(config: RunConfig, spec: SignalSpec, weights: Mapping[str, Tensor]) -> EcgEncoder:
    encoder = create_encoder(config.encoder, spec, config.data.normalisation)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit the configuration: {error}",
            "export with the configuration and spec of the run that trained them",
        ) from None
    return encoder.eval()


def _write_weights(folder: Path, parts: Exported) -> None:
    scorings = {f"{way}.{key}": tensor for way, own in parts.scorings.items() for key, tensor in own.items()}
    files = {
        "model": parts.encoder,
        "text_head": parts.report_head,
        "text_encoder": parts.report_encoder,
        "scorings": scorings,
    }
    for name, tensors in files.items():
        if tensors:
            own = {key: tensor.clone() for key, tensor in tensors.items()}  # safetensors refuses shared memory
            save_file(own, folder / f"{name}.safetensors", metadata={"format": "pt"})


def _portable(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration without what only made sense on the machine that trained: it names no place there.

    Provenance keeps the fingerprint of the data, and of a report encoder from a folder, which is called ./NAME.
    """
    values = config.resolved()
    values["data"] |= {"shards": None, "reports": None, "mixture": []}
    values.pop("evaluation", None)
    start, encoder = values["init_from"], values["text"]["encoder"]
    if start is not None and Path(start).is_absolute():
        values["init_from"] = f"./{Path(start).name}"
    if Path(encoder).is_absolute():
        values["text"]["encoder"] = f"./{Path(encoder).name}"
    return values


def _report_encoder(config: RunConfig, parts: Exported) -> dict[str, Any]:
    """As a text bank describes it, and which commit of the hub it is, where it comes from there."""
    encoder = TextEncoder(config.text, parts.report_encoder or None)
    return encoder.describe() | ({"revision": encoder.revision} if encoder.revision else {})


def _provenance(
    config: RunConfig, state: Mapping[str, Tensor], parts: Exported, training: Mapping[str, Any]
) -> dict[str, Any]:
    packages = ("cardialign", "torch", "deepspeed", "transformers", "safetensors", "numpy")
    scale, bias = state.get("logit_scale.log_scale"), state.get("logit_bias")
    return {
        "training": dict(training),
        "parameters": {
            "ecg_encoder": sum(tensor.numel() for tensor in parts.encoder.values()),
            "text_head": sum(tensor.numel() for tensor in parts.report_head.values()),
        },
        **({"scorings": list(method_class(config).scorings)} if parts.scorings else {}),
        "temperature": None if scale is None else float(torch.exp(-scale.float()).item()),
        **({} if bias is None else {"bias": float(bias.float().item())}),
        "text_encoder": _report_encoder(config, parts) if parts.report_head else None,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=False) + "\n", encoding="utf-8")
