"""Any encoder by its name: a folder of ours, or what somebody else trained."""

from __future__ import annotations

from pathlib import Path

import torch

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.outside.encoder import is_outside, open_outside
from cardialign.pretrain.export.usable import UsableEncoder, usable_device


def open_encoder(
    path: str | Path, device: torch.device | str = "cpu", *, trust_remote_code: bool = False
) -> UsableEncoder:
    """An exported folder; or a TorchScript or ONNX file, a Hugging Face folder or `outside:NAME`, each with the signal
    contract beside it (FILE.contract.yaml).

    trust_remote_code: run the Python code that a Hugging Face folder brings. Nothing else is executed or unpickled but
    an installed plug-in that is named. Raises UserError: see `load_encoder` and `open_outside`.
    """
    if is_outside(path):
        return open_outside(path, usable_device(device), trust_remote_code)
    if trust_remote_code:
        raise UsageError(f"{path} brings no code that could be trusted", "leave trust_remote_code out")
    return load_encoder(path, device)
