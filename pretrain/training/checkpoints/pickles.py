"""The pickles of a checkpoint, judged before DeepSpeed reads them: what they would import, and nothing of it imported.

DeepSpeed has torch import and call whatever a pickle names. Ours name tensors, numbers and a few classes of
DeepSpeed's; one that names anything else was not written by a run.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch._weights_only_unpickler import _get_allowed_globals

from cardialign.pretrain.training.checkpoints.condition import REMEDIES
from cardialign.pretrain.training.checkpoints.files import CheckpointError

OF_DEEPSPEED = frozenset(
    (
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
)
"""What ZeRO 0 to 3 writes beside tensors: an enumeration, three numbers, and the figures of a loss scale."""
SUFFIX = ".pt"
_LARGEST = 1 << 28
"""Bytes of the pickle in an archive: it holds names and shapes, the numbers lie beside it."""
_OTHER_WAYS = frozenset(("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"))
"""Ways to name a thing that torch does not write."""


def check_pickles(path: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError where one of these files of a checkpoint would import what no run of ours writes."""
    for name in names:
        try:
            problem = _problem(path / name) if name.endswith(SUFFIX) else ""
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} cannot be read now: {error}", REMEDIES["unreadable"]) from None
        if problem:
            raise CheckpointError(
                f"checkpoint {path}: {name} {problem}; nothing of it was read",
                "no run of ours wrote it: do not use this run directory, and ask who could write there",
            )


def _problem(path: Path) -> str:
    """By torch's own reader of archives: another might see other members than the one that loads them."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return "is no archive of torch, but may be a plain pickle"
    try:
        archive = torch._C.PyTorchFileReader(str(path))
        members = archive.get_all_records()
        if "constants.pkl" in members:
            return "holds a program"
        content = archive.get_record("data.pkl")
    except RuntimeError as error:
        return f"is no archive that torch can read ({str(error).splitlines()[0][:100]})"
    if len(content) > _LARGEST:
        return f"holds a pickle of {len(content)} bytes"
    return _foreign(content)


def _foreign(content: bytes) -> str:
    """The first thing that a pickle would import and ours do not, in words; "" where there is none."""
    allowed = _get_allowed_globals().keys() | OF_DEEPSPEED
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in _OTHER_WAYS:
                return f"names what it would import in a way that torch does not write ({operation.name})"
            if operation.name == "GLOBAL" and (wanted := str(argument).replace(" ", ".", 1)) not in allowed:
                return f"would import {ascii(wanted)[:100]}"
    except (ValueError, IndexError, OverflowError, MemoryError, RecursionError) as error:
        return f"holds a pickle that cannot be read ({str(error)[:100]})"
    return ""
