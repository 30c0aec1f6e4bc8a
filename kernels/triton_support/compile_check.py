"""Compile every Triton kernel variant for NVIDIA GPUs on a machine that has none, and read what came out.

Triton's wheel carries ptxas, cuobjdump and nvdisasm, and its compiler needs no driver when the target is named. So
registers, spills, shared memory and the instructions of each variant are known before a GPU is. Speed is not: nothing
here is a timing.

Every module named `variants` of the package is found by itself and asked for `compile_variants()`. A variant that is
dispatched must fit: no local memory (spills), shared memory within the architecture's limit, and the tensor-core
instruction it claims.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cardialign import kernels
from cardialign.kernels.triton_support.launch import Variant

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory one program may have (CUDA programming guide, compute capabilities 8.0 and 9.0)."""
REGISTERS_PER_SM, THREADS_PER_SM = 65536, 2048
COUNTED = ("HGMMA", "HMMA", "FFMA", "MUFU", "LDL", "STL")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a variant: bytes of stack and shared memory, instruction counts, seconds.

    `refused`: why it made nothing.
    """

    variant: Variant
    registers: int = 0
    stack: int = 0
    shared: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    refused: str = ""

    @property
    def programs_per_sm(self) -> int:
        """How many programs one multiprocessor can hold at a time, by registers, shared memory and threads."""
        threads = 32 * self.variant.num_warps
        shared_per_sm = SHARED_LIMIT[self.variant.architecture] + 1024
        return min(
            REGISTERS_PER_SM // (max(self.registers, 1) * threads),
            shared_per_sm // (self.shared + 1024),
            THREADS_PER_SM // threads,
        )

    @property
    def faults(self) -> list[str]:
        """Why this must not be dispatched; empty when it may be."""
        if self.refused:
            return [self.refused]
        found = []
        loads, stores = self.instructions["LDL"], self.instructions["STL"]
        if (self.stack or loads or stores) and not self.variant.spills:
            found.append(f"spills: {self.stack} B of stack, {loads} loads and {stores} stores")
        limit = SHARED_LIMIT[self.variant.architecture]
        if self.shared > limit:
            found.append(f"needs {self.shared} B of shared memory, the limit is {limit}")
        wanted = self.variant.multiplies_with
        if not self.instructions[wanted]:
            instead = ", ".join(f"{name} {self.instructions[name]}" for name in ("HGMMA", "HMMA", "FFMA"))
            found.append(f"has no {wanted}: {instead}")
        return found


def all_variants(package: ModuleType = kernels) -> Iterator[Variant]:
    """Variants of every module named `variants` of the package, however deep, in the order of their names.

    Raises ImportError, at the first variant asked for, where triton or a module of the package cannot be imported:
    a kernel that is not looked at must not pass for one that fits. Raises ValueError for two variants of one name and
    architecture, which a table could not tell apart.
    """
    seen: set[tuple[str, int]] = set()
    for name in _variant_modules(package):
        for variant in importlib.import_module(name).compile_variants():
            if (variant.name, variant.architecture) in seen:
                raise ValueError(f"{name} has a second {variant.name} for sm_{variant.architecture}; name them apart")
            seen.add((variant.name, variant.architecture))
            yield variant


def _variant_modules(package: ModuleType) -> list[str]:
    def refuse(name: str) -> None:
        # Called in an `except`: without this, walk_packages passes over a folder that does not import.
        raise ImportError(f"{name} cannot be imported, so its kernels would not be compiled")

    walked = pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=refuse)
    return sorted(module.name for module in walked if module.name.rpartition(".")[2] == "variants")


def compile_variant(variant: Variant) -> Compiled:
    """Compile one variant; a refusal by the compiler is a result, not an exception.

    Raises ValueError where triton is absent, or where TRITON_INTERPRET is set: kernels imported then cannot be
    compiled.
    """
    compiler, source, target = _toolchain(variant)
    start = time.perf_counter()
    try:
        binary = compiler(
            source, target=target, options={"num_warps": variant.num_warps, "num_stages": variant.num_stages}
        )
    except Exception as error:
        return Compiled(
            variant,
            seconds=time.perf_counter() - start,
            refused=f"does not compile: {type(error).__name__}: {str(error).strip()[:200]}",
        )
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="cubin-") as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        assembly = _tool("nvdisasm", str(cubin))
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    if registers is None or stack is None:
        raise ValueError(f"cuobjdump names no registers of {variant.name}; its output begins {usage[:200]!r}")
    return Compiled(
        variant, int(registers[1]), int(stack[1]), int(binary.metadata.shared), count_instructions(assembly), seconds
    )


def count_instructions(assembly: str) -> Counter[str]:
    """How often each opcode of COUNTED occurs in nvdisasm's listing."""
    opcodes = re.findall(
        rf"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?({'|'.join(COUNTED)})\b", assembly, re.MULTILINE
    )
    return Counter(opcodes)


def _toolchain(variant: Variant) -> tuple[Any, Any, Any]:
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise ValueError("triton is not installed; `pip install triton` (Linux)") from error
    kernel = variant.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise ValueError(f"{variant.name} was imported for the interpreter; unset TRITON_INTERPRET and start again")
    unknown = set(kernel.arg_names) ^ (set(variant.types) | set(variant.constants))
    if unknown:
        raise ValueError(
            f"{variant.name} and its kernel {kernel.__name__} disagree about the arguments {sorted(unknown)}"
        )
    signature = {name: "constexpr" if name in variant.constants else variant.types[name] for name in kernel.arg_names}
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if name in variant.aligned or signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=variant.constants, attrs=attributes)
    return triton.compile, source, GPUTarget("cuda", variant.architecture, 32)


def _tool(name: str, *arguments: str) -> str:
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if found is None:
        raise ValueError(f"{name} is neither in triton's wheel nor on the PATH; install the CUDA binary tools")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - CUDA's own tools
    return done.stdout


def table(results: Iterable[Compiled]) -> list[str]:
    """One Markdown row per variant, with a header."""
    rows = [
        "| variant | arch | warps x stages | registers | spill B | shared KiB | programs/SM "
        "| HGMMA | HMMA | FFMA | MUFU | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        variant, count = result.variant, result.instructions
        fits = f"spills, and {variant.spills}" if variant.spills and result.stack else "fits"
        verdict = "; ".join(result.faults) or fits
        if not variant.dispatched:
            verdict = f"not dispatched ({verdict})"
        cells = [
            variant.name,
            f"sm_{variant.architecture}",
            f"{variant.num_warps} x {variant.num_stages}",
            result.registers,
            result.stack,
            f"{result.shared / 1024:.0f}",
            result.programs_per_sm,
            *(count[name] for name in ("HGMMA", "HMMA", "FFMA", "MUFU")),
            verdict,
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return rows
