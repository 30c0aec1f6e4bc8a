"""Tensors in files of others: the one door for safetensors and for what `torch.save` wrote. Nothing in them runs.

safetensors compares its header with the bytes that are there before anything is made of them; `torch.load` takes plain
tensors alone, which `weights_only` sees to.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Whatever a library says of bytes that are none of its own, as ValueError with one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError, AttributeError) as error:
        raise ValueError(f"no {what} that can be read ({_line(error)})") from None
    except (RuntimeError, EOFError, IndexError, AssertionError, pickle.UnpicklingError) as error:
        raise ValueError(f"no {what} that can be read ({_line(error)})") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file. Raises ValueError in words."""
    from safetensors.torch import load

    with _in_words("safetensors"):
        return load(content)


def load_numbers(content: bytes) -> dict[str, np.ndarray]:
    """The same as arrays. Raises ValueError in words."""
    from safetensors.numpy import load

    with _in_words("safetensors"):
        return load(content)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read one at a time: `keys()`, `get_tensor(name)`. Raises OSError, also for
    what is no regular file, and ValueError in words for what is no safetensors."""
    from safetensors import safe_open

    os.close(open_regular(path))
    with _in_words("safetensors"):
        file = safe_open(path, framework="pt")
    with file as opened:
        yield opened


def load_state(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain values alone, on the CPU. Raises OSError, also for what is no regular
    file, and ValueError in words."""
    import torch

    with os.fdopen(open_regular(path), "rb") as file, _in_words("state of torch"):
        return torch.load(file, map_location="cpu", weights_only=True)
