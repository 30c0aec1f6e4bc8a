"""An encoder as a TorchScript file: torch's own interpreter runs it, no Python in it is executed.

It is still a program, of torch's operators, some of which read and write files: take it from people you trust.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_bytes, sha256_of
from cardialign.pretrain.export.outside.contract import OutsideContract
from cardialign.pretrain.export.outside.model import OutsideModel


class TorchScriptModel(OutsideModel):
    untrainable = "TorchScript does not say how its weights began"

    def __init__(self, path: Path, module: Any, identity: str, call: str | None) -> None:
        super().__init__()
        self.name, self.identity, self.call = str(path), identity, call
        self.module = module
        if not any(True for _ in module.parameters()):
            self.unlearnable = "its weights are frozen into the graph (torch.jit.freeze)"

    def forward(self, values: Tensor) -> Any:
        return (self.module if self.call is None else getattr(self.module, self.call))(values)


def open_torchscript(path: Path, contract: OutsideContract, device: torch.device) -> TorchScriptModel:
    """Raises UserError for a file that is no TorchScript; a pickled checkpoint is never loaded."""
    if not _is_torchscript(path):
        raise UserError(
            f"{path} is no TorchScript file; a pickled checkpoint or model runs code when it is loaded, and never is",
            "in the project it comes from: torch.jit.trace(model.eval(), example).save(FILE)",
        )
    identity = sha256_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is old, and the files of it are many
            module = torch.jit.load(io.BytesIO(read_bytes(path)), map_location=device)
    except (RuntimeError, OSError, ValueError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} cannot be read as TorchScript: {first[0]:.200}", "export the model again") from None
    if contract.call is not None and not hasattr(module, contract.call):
        raise UserError(f"{path} has no method {contract.call!r}, which its contract calls", "correct `call`")
    return TorchScriptModel(path, module.eval(), identity, contract.call)


def _is_torchscript(path: Path) -> bool:
    """An archive with code and constants; torch reads its pickles by an interpreter that knows no Python."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)
