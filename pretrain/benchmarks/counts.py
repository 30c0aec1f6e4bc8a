"""How large a recipe is: its parameters, and the arithmetic of encoding one record.

Nothing is allocated, trained or downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config import EncoderConfig, RunConfig, TextConfig
from cardialign.pretrain.config.places import SHIPPED_ENCODER, place_encoder
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.methods.base import Method, create_method, method_class
from cardialign.pretrain.text.folder import encoder_folder

FLOP_RULE = "one multiply-add is 2 FLOP; matrix products, convolutions and attention only"


class RecipeCounts(NamedTuple):
    """The size of one recipe.

    encoder_parameters  of the ECG encoder.
    trained_parameters  of all that trains; None where `note` says why that is not known here.
    forward_flop        of the ECG encoder, for one whole record with twelve leads, by `FLOP_RULE`.
    """

    name: str
    method: str
    encoder: str
    encoder_parameters: int
    trained_parameters: int | None
    forward_flop: int
    note: str | None = None


def count_recipe(config: RunConfig, spec: SignalSpec) -> RecipeCounts:
    """Sizes of what the recipe makes for records of `spec`. Raises UsageError as the encoder itself does."""
    encoder_parameters, forward_flop = count_encoder(config.encoder, spec)
    trained, note = _count_trained(config, spec)
    return RecipeCounts(
        config.name, config.method.name, config.encoder.name, encoder_parameters, trained, forward_flop, note
    )


def count_encoder(config: EncoderConfig, spec: SignalSpec) -> tuple[int, int]:
    """Parameters of an ECG encoder, and the FLOPs of one record's forward pass."""
    if getattr(config, "attention", None) == "packed":  # asks the data what is missing; of a whole record it is dense
        config = config.model_copy(update={"attention": "dense"})
    with torch.device("meta"):
        encoder = create_encoder(config, spec).eval()
        signal = torch.zeros(1, len(STANDARD_LEADS), spec.samples)
        lead_mask = torch.ones(1, len(STANDARD_LEADS), dtype=torch.bool)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(signal, lead_mask, **({"age": torch.zeros(1)} if encoder.reads_age else {}))
    return _parameters(encoder), int(counter.get_total_flops())


def _parameters(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def _count_trained(config: RunConfig, spec: SignalSpec) -> tuple[int | None, str | None]:
    """What the method trains, and its report encoder where that trains too. A count never downloads one."""
    text, note = text_on_this_machine(config)
    if text is None:
        return None, note
    return _parameters(sized_method(config.model_copy(update={"text": text}), spec), trained=True), None


def text_on_this_machine(config: RunConfig) -> tuple[TextConfig | None, str | None]:
    """The section `text:` of a run with the folder of its report encoder; None, and why, where that is not here."""
    text = config.text
    if not method_class(config).reports:
        return text, None
    folder = _folder_on_this_machine(text.encoder)
    if folder is None:
        return None, f"report encoder {text.encoder} is not on this machine: what trains was not counted"
    return text.model_copy(update={"encoder": str(folder), "pooling": text.pooling or "mean"}), None  # counts alike


def sized_method(config: RunConfig, spec: SignalSpec) -> Method:
    """The method of a run without storage (`meta`), its trained report encoder in it. `config.text` names a folder."""
    with torch.device("meta"):
        return create_method(config, spec)


def _folder_on_this_machine(encoder: str) -> Path | None:
    """The folder of a report encoder that is here already, in a package, a folder or the cache of the hub."""
    if encoder == SHIPPED_ENCODER or Path(place_encoder(encoder)).is_absolute():
        return encoder_folder(encoder)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(encoder, "config.json")
    except ValueError:  # no name of a model at all
        return None
    return Path(found).parent if isinstance(found, str) else None
