"""A launch of a Triton kernel as a value: it can be run, or handed to the compile check as a variant.

So what is checked is what is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Instruction = Literal["HGMMA", "HMMA", "FFMA"]

POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
"""Triton's name of a pointer to each element type."""


@dataclass(frozen=True)
class Variant:
    """One kernel as one launch would specialise it.

    kernel: the `triton.jit` function. types: run-time argument -> '*bf16', '*fp32', '*i64', 'i32', 'fp32', ...
    constants: the constexpr arguments. architecture: 90 (Hopper) or 80 (Ampere). multiplies_with: the instruction the
    dots must become; 'FFMA' says that float32 operands are multiplied exactly on purpose. dispatched: False for a
    variant kept to show why it is not chosen; it cannot fail.
    aligned: integer arguments known to be multiples of 16 (pointers always are). spills: the measurement for which
    spills are accepted.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    architecture: int = 90
    num_warps: int = 4
    num_stages: int = 2
    multiplies_with: Instruction = "HGMMA"
    dispatched: bool = True
    aligned: tuple[str, ...] = ()
    spills: str = ""


@dataclass(frozen=True)
class Launch:
    """kernel: the `triton.jit` function; grid: programs per axis; arguments, constants: by name, constants being the
    constexpr ones.

    Integer arguments are taken to be unspecialised (`do_not_specialize`), so one variant serves every size.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Launch on the device of the arguments."""
        self.kernel[self.grid](**self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages)

    def variant(self, name: str, architecture: int, multiplies_with: Instruction, dispatched: bool = True) -> Variant:
        """The same specialisation for the compile check; tensors may live on the meta device."""
        return Variant(
            name,
            self.kernel,
            {argument: _type_name(value) for argument, value in self.arguments.items()},
            self.constants,
            architecture,
            self.num_warps,
            self.num_stages,
            multiplies_with,
            dispatched,
        )


def architecture_of(device: torch.device) -> int:
    """10 x compute capability; the interpreter is given Hopper's tiles."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTER[value.dtype]
    if isinstance(value, int):
        return "i32" if abs(value) < 2**31 else "i64"
    return "fp32"
