"""Which attention library serves which operands.

What is installed is probed once, and the choice is a pure function of both. Order of `auto`, best first:
    dense   flash-attn (FA4 before FA3 before FA2), PyTorch's SDPA (on CUDA it takes cuDNN or its own flash kernels)
    packed  flash-attn, `torch.nn.attention.varlen`, SDPA over buckets of equal length
`math` is the reference, on request only.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "flash", "varlen", "sdpa", "math"]
NAMES = "auto, flash, varlen, sdpa or math"
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FlashAttention:
    """One generation of flash-attn, and what it takes.

    dense, varlen: its functions over dense (B, N, H, Dh) and packed (M, H, Dh) operands.
    """

    generation: Literal["FA4", "FA3", "FA2"]
    dense: Callable[..., Any]
    varlen: Callable[..., Any]

    @property
    def widest_head(self) -> int:
        return 128 if self.generation == "FA4" else 256

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """CUDA compute capability; FA3 was written for Hopper, FA4 for Hopper and Blackwell."""
        return {"FA4": (9, 0) <= capability < (12, 0), "FA3": capability[0] == 9, "FA2": capability >= (8, 0)}[
            self.generation
        ]


@dataclass(frozen=True)
class Available:
    """What a device can use.

    flash: installed flash-attn generations that run on it, best first. varlen: PyTorch's varlen attention.
    """

    flash: tuple[FlashAttention, ...] = ()
    varlen: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Operands:
    """All that the choice depends on.

    device: type, `cpu` or `cuda`. masked: a key mask is given. packed: sequences back to back.
    """

    device: str
    dtype: torch.dtype
    head_width: int
    masked: bool = False
    packed: bool = False


def operands(q: Tensor, *, masked: bool = False, packed: bool = False) -> Operands:
    return Operands(q.device.type, q.dtype, q.shape[-1], masked, packed)


def probe(device: torch.device) -> Available:
    """What is installed and runs on this device; nothing on a CPU, whose one fast path is SDPA."""
    if device.type != "cuda":
        return Available()
    index = device.index if device.index is not None else torch.cuda.current_device()
    return _probe_cuda(tuple(torch.cuda.get_device_capability(index)))


@functools.cache
def _probe_cuda(capability: tuple[int, int]) -> Available:
    varlen = getattr(_imported("torch.nn.attention.varlen"), "varlen_attn", None) if capability >= (8, 0) else None
    return Available(tuple(flash for flash in installed_flash() if flash.runs_on(capability)), varlen)


@functools.cache
def installed_flash() -> tuple[FlashAttention, ...]:
    """The generations of flash-attn that import here, newest first.

    FA3 is one module without a package, and lived in `hopper` before.
    """
    found: list[FlashAttention] = []
    places: tuple[tuple[Literal["FA4", "FA3", "FA2"], tuple[str, ...]], ...] = (
        ("FA4", ("flash_attn.cute",)),
        ("FA3", ("flash_attn_interface", "hopper.flash_attn_interface")),
        ("FA2", ("flash_attn",)),
    )
    for generation, modules in places:
        for module in map(_imported, modules):
            dense, varlen = getattr(module, "flash_attn_func", None), getattr(module, "flash_attn_varlen_func", None)
            if dense is not None and varlen is not None:
                found.append(FlashAttention(generation, dense, varlen))
                break
    return tuple(found)


def _imported(name: str) -> Any:
    """The module, or None where it does not import.

    These packages are tied to one build of PyTorch and CUDA, and a wrong one fails in its own ways.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def flash_for(about: Operands, available: Available) -> FlashAttention | None:
    """The newest flash-attn that takes these operands."""
    if about.device != "cuda" or about.dtype not in HALF or about.masked or about.head_width % 8:
        return None
    return next((flash for flash in available.flash if about.head_width <= flash.widest_head), None)


def varlen_fits(about: Operands, available: Available) -> bool:
    """Whether PyTorch's varlen attention takes these operands.

    It takes packed ones, on CUDA, in half precision, with heads of a multiple of 8 up to 256.
    """
    fits = (
        about.packed
        and about.device == "cuda"
        and about.dtype in HALF
        and about.head_width % 8 == 0
        and about.head_width <= 256
    )
    return fits and available.varlen is not None


def choose_backend(about: Operands, available: Available, asked: Backend = "auto") -> Backend:
    """The implementation for these operands: `flash`, `varlen`, `sdpa` or `math`.

    Raises ValueError with the remedy for an unknown name and for a library asked for by name that cannot serve them.
    """
    if asked in ("sdpa", "math"):
        return asked
    if asked not in ("auto", "flash", "varlen"):
        raise ValueError(f"unknown attention backend {asked!r}; use {NAMES}")
    flash, varlen = flash_for(about, available) is not None, varlen_fits(about, available)
    if asked == "auto":
        return "flash" if flash else "varlen" if varlen else "sdpa"
    if asked == "flash" and not flash:
        raise ValueError(
            f"flash attention cannot serve {_words(about)}: {_why_no_flash(about, available)}; or use backend='auto'"
        )
    if asked == "varlen" and not varlen:
        raise ValueError(
            f"varlen attention cannot serve {_words(about)}: it needs packed sequences (packed_attention), "
            "a CUDA device of capability 8.0, float16 or bfloat16, a head width that is a multiple of 8 up to 256, "
            "and torch.nn.attention.varlen; or use backend='auto'"
        )
    return asked


def _why_no_flash(about: Operands, available: Available) -> str:
    if about.device != "cuda":
        return "it needs CUDA tensors"
    if not available.flash:
        return (
            "no flash-attn that runs on this device is installed "
            "(pip install 'cardialign[flash]' where its build matches PyTorch)"
        )
    if about.masked:
        return "it takes no key mask; pack the sequences and call packed_attention"
    if about.dtype not in HALF:
        return "it needs float16 or bfloat16"
    return f"the head width must be a multiple of 8 up to {max(flash.widest_head for flash in available.flash)}"


def _words(about: Operands) -> str:
    shape = "packed sequences" if about.packed else "masked sequences" if about.masked else "dense sequences"
    return f"{shape} of {str(about.dtype).removeprefix('torch.')} heads {about.head_width} wide on {about.device}"


def first(output: Any) -> Tensor:
    """FA3 and FA4 return (output, log-sum-exp) in some versions, the output alone in others."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
