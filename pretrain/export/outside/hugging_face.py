"""An encoder as a Hugging Face folder: safetensors and a configuration, built by transformers' own code.

A folder may bring code of its own (`auto_map`). It is run only when the user asks for it by name; a pickle never is.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes, sha256_of
from cardialign.pretrain.export.outside.contract import OutsideContract
from cardialign.pretrain.export.outside.model import OutsideModel

CONFIG, WEIGHTS = "config.json", "*.safetensors"


class HuggingFaceModel(OutsideModel):
    def __init__(self, folder: Path, module: Any, identity: str, contract: OutsideContract, trusted: bool) -> None:
        super().__init__()
        self.name, self.identity, self.folder, self.trusted = str(folder), identity, folder, trusted
        self.module, self.contract = module, contract
        self.runtime = f"transformers {version('transformers')}"
        assert contract.input is not None

    def forward(self, values: Tensor) -> Any:
        call = self.module if self.contract.call is None else getattr(self.module, self.contract.call)
        return call(**{str(self.contract.input): values})

    def fresh(self, seed: int) -> OutsideModel:
        from transformers import AutoModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = AutoModel.from_config(self.module.config, trust_remote_code=self.trusted).eval()
        made = HuggingFaceModel(self.folder, module, f"{self.identity}-untrained-{seed}", self.contract, self.trusted)
        made.name = f"{self.name}, untrained"
        return made

    def embed_text(self, texts: list[str], contract: OutsideContract) -> np.ndarray:
        from transformers import AutoTokenizer

        if contract.text is None:
            raise self.without_text("its contract names no method under `text`")
        if not hasattr(self.module, contract.text):
            raise self.without_text(f"it has no method {contract.text!r}, which its contract names")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=self.trusted
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise self.without_text(f"its tokenizer cannot be read ({first[0]:.120})") from None
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=contract.text_tokens, return_tensors="pt")
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            found = getattr(self.module, contract.text)(**{key: value.to(device) for key, value in tokens.items()})
        found = found if isinstance(found, Tensor) else found.pooler_output
        if tuple(found.shape) != (len(texts), contract.embedding_dim):
            raise self.unfit(
                f"{contract.text} gives {tuple(found.shape)} for {len(texts)} texts, "
                f"its embeddings of signals have {contract.embedding_dim} numbers"
            )
        return found.float().cpu().numpy()


def open_hugging_face(folder: Path, contract: OutsideContract, trust_remote_code: bool) -> HuggingFaceModel:
    """Raises UserError for a folder of pickles, for code of its own that was not asked for, and for missing weights."""
    try:
        config = parse_json(read_bytes(folder / CONFIG), long_numbers=True)
        files = sorted(folder.glob(WEIGHTS))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}", "fetch the folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} holds no keys", "fetch the folder again")
    if not files:
        pickles = [each.name for each in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        raise UserError(
            f"{folder} holds no safetensors"
            + (f", only {pickles[0]}: a pickle, which is never loaded" * bool(pickles)),
            "save the model anew with save_pretrained(FOLDER), which writes model.safetensors",
        )
    if contract.input is None:
        raise UserError(
            f"{folder}: its contract has no `input`, the name of the argument that takes the signal",
            "write it, such as `input: input_values`",
        )
    own_code = bool(config.get("auto_map")) and not _is_known(config)
    if own_code and not trust_remote_code:
        raise UserError(
            f"{folder} is built by Python code of its own ({CONFIG} has auto_map), which is not run unasked",
            "read that code; if you trust it as you trust your own, add --trust-remote-code",
        )
    module = _loaded(folder, contract, trust_remote_code and own_code)
    for called in filter(None, (contract.call, contract.text)):
        if not hasattr(module, called):
            raise UserError(f"{folder} has no method {called!r}, which its contract names", "correct it")
    code = sorted(folder.glob("*.py")) if own_code else []
    listed = [[each.name, sha256_of(each)] for each in (folder / CONFIG, *files, *code)]
    identity = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return HuggingFaceModel(folder, module.eval(), identity, contract, trust_remote_code and own_code)


def _is_known(config: dict[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _loaded(folder: Path, contract: OutsideContract, trusted: bool) -> Any:
    from transformers import AutoModel

    try:
        module, told = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=trusted, output_loading_info=True,
            dtype=getattr(torch, contract.dtype),
        )  # fmt: skip
    except Exception as error:  # of transformers, or of the folder's own code: whatever a wrong configuration leads to
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{folder} cannot be built by transformers' AutoModel: {first[0]:.200}",
            "save it anew with save_pretrained, from a model class that AutoModel knows",
        ) from None
    missing = sorted(str(key) for key in told["missing_keys"])
    if contract.output != "pooler_output":  # the one part that is often left out, and read by nothing else
        missing = [key for key in missing if "pooler." not in key]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} weights, such as {missing[0]}: they would be random",
            "fetch the whole folder, or save the model anew",
        )
    return module
