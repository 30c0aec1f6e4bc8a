"""Verified weights -> the modules that they are of; what a configuration claims beyond the weights takes no memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.config.named import stored_text
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.methods.parts.scoring import Scoring
from cardialign.pretrain.run.files import CONFIG
from cardialign.pretrain.run.integrity import (
    MODEL,
    PROVENANCE,
    REPORT_ENCODER,
    REPORT_HEAD,
    SCORINGS,
    SETTINGS,
    VerifiedExport,
)
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.folder import COMMIT
from cardialign.pretrain.text.tower import TanhHead, TextHead, head_of

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

DRAWING = {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
"""What fills a parameter with random numbers; `erfinv_` is the slow step of a truncated normal."""


Built = TypeVar("Built", bound=nn.Module)


class ReportSide(NamedTuple):
    """What turns a report into a vector beside those of the ECGs: the report encoder, and the head trained on it.

    text_encoder is looked for when it is called, not before: ECGs do not need it.
    """

    text_encoder: Callable[[], TextEncoder]
    head: TextHead | TanhHead


def load_reports(
    parts: VerifiedExport, values: dict[str, Any], embedding_dim: int, device: torch.device | str
) -> ReportSide | None:
    """The report encoder is looked for when a text comes: of a hub's id, the commit that the export names."""
    if REPORT_HEAD not in parts.content:
        return None
    try:
        config = TextConfig.model_validate(stored_text(values.get("text", {})))
    except ValueError as error:
        raise parts.wrong(SETTINGS, f"text: {error}") from None
    weights = parts.tensors(REPORT_HEAD)
    width = weights["norm.weight"].numel() if "norm.weight" in weights else 0
    kind = head_of(weights)
    head = module_of(parts, REPORT_HEAD, weights, lambda: kind(width, embedding_dim))
    state = parts.tensors(REPORT_ENCODER) if REPORT_ENCODER in parts.content else None
    told = parts.json(PROVENANCE).get("text_encoder")
    revision = told.get("revision") if isinstance(told, dict) else None
    commit = revision if isinstance(revision, str) and COMMIT.fullmatch(revision) else None
    return ReportSide(lambda: TextEncoder(config, state, device, commit), head)


def where_its_run_has_it(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of an export, whose report encoder, if it still lies in its run, is where the run found it.

    It says but the name of that folder; the fingerprint says whether it is the one.
    """
    text = values.get("text")
    word = text.get("encoder") if isinstance(text, dict) else None
    if not isinstance(text, dict) or not isinstance(word, str) or not word.startswith("./"):
        return values
    beside = (read_json(folder.absolute().parent / CONFIG) or {}).get("text")
    place = beside.get("encoder") if isinstance(beside, dict) else None
    same = isinstance(place, str) and Path(place).is_absolute() and Path(place).name == Path(word).name
    return {**values, "text": {**text, "encoder": place}} if same else values


def load_scorings(
    parts: VerifiedExport, config: Callable[[], RunConfig], ecg: EcgEncoder
) -> dict[str, Callable[[], Scoring]]:
    """What makes each way of scoring that the export has weights of; the method must be here when one is made."""
    if SCORINGS not in parts.content:
        return {}
    tensors = parts.tensors(SCORINGS)

    def make(way: str) -> Scoring:
        from cardialign.pretrain.methods.base import method_class, part

        return module_of(
            parts, SCORINGS, part(tensors, f"{way}."), lambda: method_class(config()).scoring(way, config(), ecg)
        )

    return {way: partial(make, way) for way in dict.fromkeys(name.partition(".")[0] for name in tensors)}


def check_plausible(parts: VerifiedExport, claimed: Any) -> None:
    """Raises UserError when a number in the section of the encoder is larger than the encoder as a whole."""
    most = max(10**6, len(parts.content[MODEL]))
    waiting = [claimed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int | float) and not abs(value) <= most:
            raise parts.wrong(SETTINGS, f"encoder: {value:g} is more than {MODEL} can hold")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []


def module_of(parts: VerifiedExport, name: str, weights: dict[str, Tensor], make: Callable[[], Built]) -> Built:
    """What `make` builds, with the `weights` of file `name`; building ends where it asks for more than these."""
    try:
        with at_most(len(weights), sum(tensor.numel() for tensor in weights.values())), WithoutDrawing():
            made = make()
    except UserError:
        raise
    except Exception as error:  # of torch, Python or a plug-in: whatever a wrong figure leads to
        raise parts.wrong(SETTINGS, f"what it describes is not in {name}: {error}") from None
    asked = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    differing = sorted(key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise parts.wrong(
            SETTINGS,
            f"what it describes is not in {name}: {len(differing)} tensors differ (first: {key} has shape "
            f"{found.get(key, 'none')}, the configuration asks for {asked.get(key, 'none')})",
        )
    made.load_state_dict(weights)
    return made


class WithoutDrawing(TorchFunctionMode):
    """In this block, no random numbers are drawn into a parameter: all of them are about to be replaced."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(given, nn.Parameter) and func in DRAWING:  # a buffer may be drawn on purpose, from its own seed
            return given
        return func(*args, **(kwargs or {}))


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """In this block, modules may register this many parameters with as many numbers; twice as many end it at once.

    A layer is asked before its weights are drawn, so what a configuration claims beyond the weights takes no memory.
    """
    thread, seen = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if threading.get_ident() != thread or parameter is None:
            return
        seen[0], seen[1] = seen[0] + 1, seen[1] + parameter.numel()
        if seen[0] > 2 * tensors or seen[1] > 2 * numbers:
            raise ValueError(f"it asks for more than the {tensors} tensors and {numbers} weights that are there")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
