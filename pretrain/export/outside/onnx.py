"""An encoder as an ONNX file: a graph of standard operators, run by onnxruntime. No Python in it, nothing to train."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import install
from cardialign.data_shards.files import sha256_of
from cardialign.pretrain.export.outside.contract import SUFFIX, OutsideContract
from cardialign.pretrain.export.outside.model import OutsideModel

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class OnnxModel(OutsideModel):
    untrainable = "an ONNX file does not say how its weights began"
    unlearnable = "an ONNX file holds a graph to be run, not one to be trained"

    def __init__(self, path: Path, session: Any, taken: str, only: bool) -> None:
        super().__init__()
        self.name, self.session, self.taken, self.only = str(path), session, taken, only
        files = sorted(each for each in path.parent.glob(f"{path.name}*") if each.is_file())
        listed = [[each.name, sha256_of(each)] for each in files if not each.name.endswith(SUFFIX)]
        self.identity = hashlib.sha256(repr(listed).encode()).hexdigest()
        self.runtime = f"onnxruntime {importlib.import_module('onnxruntime').__version__}"

    def forward(self, values: Tensor) -> dict[str, Tensor] | Tensor:
        names = [each.name for each in self.session.get_outputs()]
        found = self.session.run(names, {self.taken: values.cpu().numpy()})
        tensors = [torch.from_numpy(each).to(values.device) for each in found]
        return tensors[0] if self.only else dict(zip(names, tensors, strict=True))


def open_onnx(path: Path, contract: OutsideContract, device: torch.device) -> OnnxModel:
    """Raises UserError without onnxruntime, for a damaged file, and where input or output are not the contract's."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise UserError(f"{path} needs onnxruntime, which is not installed", install("onnx")) from None
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every failure
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} cannot be read as ONNX: {first[0]:.200}", "export the model again") from None
    inputs = {each.name: each for each in session.get_inputs()}
    taken = contract.input if contract.input is not None or len(inputs) != 1 else next(iter(inputs))
    if taken not in inputs or len(inputs) != 1:
        raise UserError(
            f"{path} has the inputs {', '.join(inputs)}; its contract says input: {taken or 'nothing'}",
            "an encoder takes one input, the signal: export it so, and leave `input` out or name it",
        )
    outputs = [each.name for each in session.get_outputs()]
    if contract.output not in outputs and not (contract.output == "only" and len(outputs) == 1):
        raise UserError(
            f"{path} has the outputs {', '.join(outputs)}; its contract says output: {contract.output}",
            "name one of them",
        )
    model = OnnxModel(path, session, str(taken), contract.output == "only")
    model.fixed_batch = _fixed_batch(path, inputs[str(taken)], contract)
    return model.to(device)


def _fixed_batch(path: Path, given: Any, contract: OutsideContract) -> int | None:
    """What the file itself says of its input, held against the contract; the batch, where it is a number."""
    leads, samples = len(contract.leads), contract.spec.samples
    wanted: dict[str, tuple[int, ...]] = {
        "leads-time": (leads, samples),
        "time-leads": (samples, leads),
        "leads-concatenated": (leads * samples,),
    }
    own, layout = list(given.shape), wanted[contract.layout]
    agree = len(own) == len(layout) + 1 and all(
        not isinstance(has, int) or has == wants for has, wants in zip(own[1:], layout, strict=False)
    )
    if not agree:
        raise UserError(
            f"{path} takes {given.name} of shape ({', '.join(map(str, own))}), its contract says "
            f"(batch, {', '.join(map(str, layout))}) by leads, layout, sampling_rate and seconds",
            "correct the contract",
        )
    kind = TYPES.get(given.type, given.type)
    if kind != contract.dtype:
        raise UserError(f"{path} takes {kind}, its contract says dtype: {contract.dtype}", "correct the contract")
    return own[0] if isinstance(own[0], int) else None
