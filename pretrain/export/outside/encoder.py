"""Somebody else's encoder in use: our signals in, brought to its contract, unit vectors out.

It is one more `UsableEncoder`: evaluations do not know that it is not ours.
Legend: B batch, T samples, D embedding_dim.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config.named import MODEL_TYPE
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.export.given_signal import ContractSignal, SignalForm, at_length, conform_signal
from cardialign.pretrain.export.outside.contract import Filter, OutsideContract, contract_beside, read_contract
from cardialign.pretrain.export.outside.hugging_face import CONFIG, open_hugging_face
from cardialign.pretrain.export.outside.model import OutsideModel, check_features, features_of, try_out
from cardialign.pretrain.export.outside.onnx import open_onnx
from cardialign.pretrain.export.outside.plug_in import open_plug_in
from cardialign.pretrain.export.outside.signals import check_length, filtered, laid_out, model_input
from cardialign.pretrain.export.outside.torchscript import open_torchscript
from cardialign.pretrain.export.trained_on import TrainedOn
from cardialign.pretrain.export.usable import Reader, UsableEncoder, tensors_digest

PLUG_IN = "outside:"
TORCHSCRIPT, ONNX = (".pt", ".pth", ".ts", ".torchscript"), (".onnx",)
PICKLES = (".pkl", ".pickle", ".joblib", ".ckpt", ".bin", ".npy", ".h5", ".tar")
EMBED_BATCH = 64


class OutsideModule(EcgEncoder):
    """A model behind the face of our encoders: mV of a shard set's rate and length in, features out."""

    word = "outside"

    def __init__(self, spec: SignalSpec, contract: OutsideContract, model: OutsideModel) -> None:
        super().__init__(spec, "none")
        self.contract, self.model = contract, model
        self.feature_width = self.token_width = contract.embedding_dim
        if contract.blocks is not None:
            self.block_list = contract.blocks

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """Gradients reach the weights, not the signal."""
        valid = torch.full((len(signal),), signal.shape[-1]) if valid_samples is None else valid_samples
        mv, leads, recorded = (each.detach().cpu().numpy() for each in (signal, lead_mask, valid))
        values = torch.from_numpy(model_input(self.contract, mv, leads, recorded, self.sampling_rate))
        values = values.to(signal.device)
        features = features_of(self.model, self.contract, values)
        if not torch.is_grad_enabled():
            check_features(self.model.name, features, values)
        return EncoderOutput(F.normalize(features, dim=-1), features, valid_samples=valid_samples)


class OutsideEncoder(UsableEncoder):
    """Opened by `open_outside`; it was tried out on two made-up signals before anybody sees it."""

    def __init__(self, model: OutsideModel, contract: OutsideContract, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.contract, self.device = contract, device
        self.untrainable, self.leads_read = model.untrainable, contract.leads
        self.needs_all_leads = contract.missing_leads == "refuse"
        self.digest = hashlib.sha256(f"{model.identity} {contract.digest}".encode()).hexdigest()
        try_out(self.model, contract, device)
        names = [name for name, _ in model.named_parameters()]
        if contract.blocks is not None and names and not any(f"{contract.blocks}.0." in name for name in names):
            raise model.unfit(f"its contract says blocks: {contract.blocks}; no weight is called {contract.blocks}.0")

    def reader(self, spec: SignalSpec) -> Reader:
        check_length(self.contract, spec)
        module = OutsideModule(spec, self.contract, self.model)

        def read(signal: np.ndarray, lead_mask: np.ndarray, valid_samples: np.ndarray) -> EncoderOutput:
            given = (torch.as_tensor(np.asarray(each)) for each in (signal, lead_mask, valid_samples))
            with torch.inference_mode():
                return module(*(each.to(self.device) for each in given))

        return read

    def embed(self, signal: np.ndarray, *, sampling_rate: float, **form: Unpack[SignalForm]) -> np.ndarray:
        """As `LoadedEncoder.embed`: what differs from the contract is refused with the argument that allows it.

        A lead that the model does not read may be absent.
        """
        leads = form.get("leads", STANDARD_LEADS)
        if isinstance(leads, list | tuple):
            names = {str(lead).strip().casefold() for lead in leads}
            if names >= {lead.casefold() for lead in self.contract.leads}:
                form["allow_missing_leads"] = True
        standard = self.contract.standard
        fit = conform_signal(standard, signal, sampling_rate=sampling_rate, **form)
        if self.contract.filter != "none":  # before it is cut, as records of a shard set are
            assert isinstance(self.contract.filter, Filter)
            lasting = max(np.shape(signal)[-1] / float(sampling_rate), standard.seconds)
            uncut = dataclasses.replace(standard, seconds=lasting, samples=round(lasting * standard.sampling_rate))
            form["crop"] = True  # by the one sample that rounding may have made too many
            wide = conform_signal(uncut, signal, sampling_rate=sampling_rate, **form)
            values = filtered(wide.signal, wide.valid_samples, self.contract.filter, standard.sampling_rate)
            fit = at_length(values, wide.lead_mask, wide.valid_samples, standard, True)
        parts = []
        for start in range(0, len(fit.signal), EMBED_BATCH):
            rows = slice(start, start + EMBED_BATCH)
            own = ContractSignal(fit.signal[rows], fit.lead_mask[rows], fit.valid_samples[rows])
            values = laid_out(self.contract, own)
            given = torch.from_numpy(values).to(self.device)
            with torch.inference_mode():
                features = features_of(self.model, self.contract, given)
                check_features(self.model.name, features, given)
                parts.append(F.normalize(features, dim=-1).cpu())
        return torch.cat(parts).numpy()

    def embed_text(self, texts: list[str]) -> np.ndarray:
        found = self.model.embed_text([texts] if isinstance(texts, str) else list(texts), self.contract)
        sizes = np.linalg.norm(found, axis=1, keepdims=True)
        if not np.isfinite(found).all() or not sizes.all():
            raise UserError(f"{self.model.name}: a text has an embedding that is 0 or not finite", "see its text side")
        return (found / sizes).astype(np.float32)

    def untrained(self, seed: int = 0) -> OutsideEncoder:
        made = OutsideEncoder(self.model.fresh(seed), self.contract, self.device)
        made.digest = f"untrained-seed-{seed} of {self.digest}"
        return made

    def trainable(self, spec: SignalSpec) -> EcgEncoder:
        if self.model.unlearnable:
            raise UserError(
                f"{self.model.name} cannot be fine-tuned: {self.model.unlearnable}",
                "possible with it: `cardialign evaluate linear-probe`, `cardialign embed`; to fine-tune, give it as "
                "TorchScript that is not frozen, as a Hugging Face folder, or as a plug-in that is an nn.Module",
            )
        check_length(self.contract, spec)
        return OutsideModule(spec, self.contract, self.model)

    def weights_digest(self) -> str:
        return tensors_digest(self.model.state_dict(), self.model.identity.encode())

    def computing_digest(self) -> str:
        return hashlib.sha256(f"{self.digest} {self.model.runtime}".encode()).hexdigest()

    def seen(self) -> TrainedOn:
        """Its contract can name data sets, never records."""
        if self.contract.trained_on == "unknown":
            return TrainedOn(unknown=("its signal contract does not say what it was trained on",))
        sets = ", ".join(self.contract.trained_on) or "nothing that its signal contract names"
        return TrainedOn(unknown=(f"its signal contract says that it was trained on {sets}, not on which records",))


def is_outside(name: str | Path) -> bool:
    """Whether the name is that of somebody else's encoder: a plug-in, a file, or a folder as Hugging Face has them."""
    path = Path(name)
    return str(name).startswith(PLUG_IN) or path.is_file() or (path.is_dir() and _is_hugging_face(path))


def _is_hugging_face(folder: Path) -> bool:
    """An export of ours has a `config.json`, too, which names no architecture but the type that is ours."""
    if contract_beside(folder).is_file():
        return True
    try:
        values = parse_json(read_bytes(folder / CONFIG), long_numbers=True)
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or values.get("model_type") == MODEL_TYPE:
        return False
    return bool({"architectures", "model_type", "auto_map"} & values.keys())


def open_outside(name: str | Path, device: torch.device, trust_remote_code: bool = False) -> OutsideEncoder:
    """The encoder `outside:NAME`, in a file (TorchScript, ONNX), or in a Hugging Face folder, by its signal contract.

    Raises UserError, UsageError: an unknown form, a pickle, a contract that is not there, has mistakes or does not fit
    the model, code that was not asked for.
    """
    path = Path(name)
    if str(name).startswith(PLUG_IN):
        model, place = open_plug_in(str(name).removeprefix(PLUG_IN))
        return OutsideEncoder(model, read_contract(place, model.name), device)
    if path.is_dir():
        contract = read_contract(contract_beside(path), f"folder {path}")
        return OutsideEncoder(open_hugging_face(path, contract, trust_remote_code), contract, device)
    if path.suffix in TORCHSCRIPT:
        contract = read_contract(contract_beside(path), str(path))
        return OutsideEncoder(open_torchscript(path, contract, device), contract, device)
    if path.suffix in ONNX:
        contract = read_contract(contract_beside(path), str(path))
        return OutsideEncoder(open_onnx(path, contract, device), contract, device)
    pickled = "may be a pickle, which runs code when it is loaded and never is" if path.suffix in PICKLES else ""
    raise UserError(
        f"{path} {pickled or 'is no form of an encoder that is known here'}",
        f"give TorchScript ({', '.join(TORCHSCRIPT)}), ONNX ({', '.join(ONNX)}), a Hugging Face folder with "
        f"{CONFIG} and safetensors, an exported folder, or {PLUG_IN}NAME of an installed plug-in",
    )
