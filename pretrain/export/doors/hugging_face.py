"""An exported encoder as a model of `transformers`: `from_pretrained` of its folder, or of a hub that has it.

Users write `import cardialign.transformers` once; `AutoModel` then knows the folder by `model_type` in its
`config.json`. Nothing that lies in the folder is run or unpickled, `trust_remote_code` is not asked for, and every file
is compared with its digest, as the library does.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config.named import MODEL_TYPE
from cardialign.pretrain.export.given_signal import SignalForm, conform_signal
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder
from cardialign.pretrain.export.usable import tensors_digest
from cardialign.pretrain.run.integrity import (
    DIGESTS,
    EXPORT_FILES,
    folder_beside,
    read_export,
    refuse_to_replace,
    replace_export,
)

OF_A_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Arguments of `from_pretrained` that say which version of a hub is meant."""
SAID_ANYWAY = ("trust_remote_code", "use_safetensors", "low_cpu_mem_usage", "adapter_kwargs", "weights_only", "proxies")
"""Those that change nothing here: no code is run, only safetensors are read."""


class CardialignConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of the run that trained the encoder, as `config.json` of its folder has it."""

    model_type = MODEL_TYPE


class CardialignModel(PreTrainedModel):  # type: ignore[misc]
    """One exported encoder. `contract` is its signal contract, `digest` that of its export.

    It comes in evaluation mode, with weights that can be trained further; `save_pretrained` writes the export again,
    and refuses one whose weights have changed since: their figures and ECGs would be those of another encoder.
    """

    config_class = CardialignConfig
    main_input_name = "signal"
    base_model_prefix = "encoder"

    def __init__(self, config: CardialignConfig, loaded: LoadedEncoder | None = None) -> None:
        super().__init__(config)
        if loaded is None:
            raise UsageError(
                "an encoder without weights is not made here", "CardialignModel.from_pretrained(FOLDER), or train one"
            )
        self.encoder = loaded.ecg.requires_grad_(True)
        self.contract, self.digest = loaded.contract, loaded.digest
        self._folder, self._weights = Path(), loaded.weights_digest()

    def forward(
        self,
        signal: np.ndarray | Tensor,
        *,
        sampling_rate: float | None = None,
        return_tokens: bool = False,
        **form: Unpack[SignalForm],
    ) -> BaseModelOutputWithPooling:
        """ECG (B, L, T) or (L, T) in mV -> pooler_output float32 (B, e), unit rows; last_hidden_state (B, N, D), the
        tokens, with return_tokens.

        form: as `cardialign.load_encoder(...).embed` takes it; a signal that differs from the contract is refused with
        the remedy. Gradients reach the weights. Raises UserError.
        """
        if sampling_rate is None:
            raise UsageError("nothing says the sampling_rate of the ECGs", "model(signal, sampling_rate=RATE_IN_HZ)")
        if not isinstance(signal, np.ndarray | Tensor):
            raise UsageError(f"signal is a {type(signal).__name__}", "give an array or a tensor (B, leads, samples)")
        given = signal.detach().float().cpu().numpy() if isinstance(signal, Tensor) else signal
        fit = conform_signal(self.contract, given, sampling_rate=sampling_rate, **form)
        device = next(self.encoder.parameters()).device
        tensors = [torch.from_numpy(each).to(device) for each in fit[:3]]
        more = {} if fit.age is None else {"age": torch.from_numpy(fit.age).to(device)}
        with ENCODERS.watched(self.encoder.word, "cannot embed"):
            found = self.encoder(*tensors, return_tokens, **more)
        return BaseModelOutputWithPooling(last_hidden_state=found.tokens, pooler_output=found.embedding.float())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *_: Any, config: Any = None, **asked: Any
    ) -> CardialignModel:
        """Folder of an exported encoder, or the name of one on a hub.

        Raises UserError for a folder that is not as it was written; UsageError for an argument that would change what
        it computes.
        """
        hub = {name: asked.pop(name) for name in OF_A_HUB if name in asked}
        own = {name: value for name, value in asked.items() if not name.startswith("_") and name not in SAID_ANYWAY}
        for name in ("dtype", "torch_dtype"):
            if str(own.get(name, "auto")).removeprefix("torch.") in ("None", "auto", "float32"):
                own.pop(name, None)
        if changed := sorted(name for name, value in own.items() if value not in (None, False)):
            raise UsageError(
                f"from_pretrained of an ECG encoder has no {', '.join(changed)}",
                "leave it out: weights are float32 as they were exported; model.to(DEVICE) moves them",
            )
        folder = _folder_of(str(pretrained_model_name_or_path), hub)
        loaded = load_encoder(folder)
        values = read_export(folder).json("config.json")
        model = cls(CardialignConfig(**{**values, "name_or_path": str(pretrained_model_name_or_path)}), loaded)
        model._folder = folder
        model.eval()
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **asked: Any) -> None:  # type: ignore[override]
        """Write the export again. Raises UserError where its weights were changed, or its folder is not what it was."""
        if asked.get("push_to_hub"):
            raise UsageError("nothing is sent to a hub from here", "save it, look at it, and upload the folder")
        out = Path(save_directory)
        if tensors_digest(self.encoder.state_dict()) != self._weights:
            raise UserError(
                "the weights are not those that were loaded: the model card, figures and ECGs are of another encoder",
                "train on with `cardialign evaluate fine-tune` or `pretrain --set init_from=FOLDER`, and export that; "
                "torch.save of model.state_dict() keeps your weights alone",
            )
        parts = read_export(self._folder)
        if parts.digest != self.digest:
            raise UserError(f"{self._folder} holds another encoder now", "load the model again")
        refuse_to_replace(out, overwrite=False)
        try:
            with folder_beside(out) as scratch:
                fresh = scratch / "encoder"
                fresh.mkdir()
                for name in (*parts.listed, DIGESTS):
                    shutil.copyfile(self._folder / name, fresh / name)
                replace_export(fresh, out, scratch)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror or error}", "choose another folder") from None


def _folder_of(name: str, hub: dict[str, Any]) -> Path:
    """The folder itself, or where the hub's files lie. Raises UserError where there is neither."""
    if Path(name).is_dir() or name.startswith(("models:/", "/", ".", "~")):
        return Path(name)
    from huggingface_hub import snapshot_download

    given = {key: value for key, value in hub.items() if value is not None}
    try:
        return Path(snapshot_download(name, allow_patterns=list(EXPORT_FILES), **given))
    except Exception as error:  # the hub raises a dozen unrelated types for "no such id", "no network" and "offline"
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{name!r} is neither a folder nor an encoder that could be fetched ({type(error).__name__}: {first:.200})",
            "give the folder of an exported encoder",
        ) from None


def make_known() -> None:
    """Let `AutoConfig` and `AutoModel` of this process know encoders of ours by their `model_type`."""
    AutoConfig.register(MODEL_TYPE, CardialignConfig, exist_ok=True)
    AutoModel.register(CardialignConfig, CardialignModel, exist_ok=True)
