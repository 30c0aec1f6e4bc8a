"""What the compiler made of a variant, kept from one run of the tests to the next: only changed kernels compile anew.

A result is kept under a digest of everything it follows from. Triton's own key of a kernel covers its source, the
sources of all functions it calls and the values of the constants they read. The rest is the variant itself, Triton's
version (its wheel carries the assembler and the disassembler) and the module that reads the registers and counts the
instructions.

The folder is `compiled` under CARDIALIGN_TEST_CACHE or under pytest's own cache folder: a clean checkout has none and
compiles everything.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from cardialign.kernels.triton_support import compile_check
from cardialign.kernels.triton_support.compile_check import Compiled, Variant, compile_variant

SETTINGS = ("name", "types", "constants", "architecture", "num_warps", "num_stages", "aligned")
"""Fields of a variant that decide what is compiled; the others are what is expected of it."""

NUMBERS = ("registers", "stack", "shared")


def cache_folder(config: pytest.Config) -> Path | None:
    """Where results are kept; None when pytest runs without its cache and CARDIALIGN_TEST_CACHE is not set."""
    named = os.environ.get("CARDIALIGN_TEST_CACHE")
    if named:
        folder = Path(named) / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return config.cache.mkdir("compiled") if getattr(config, "cache", None) is not None else None


def digest_of(variant: Variant) -> str:
    """Digest of all that a compile result follows from."""
    told = {
        "kernel": variant.kernel.cache_key,
        "variant": {name: repr(getattr(variant, name)) for name in SETTINGS},
        "triton": version("triton"),
        "tools": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("TRITON_PTXAS", "PTXAS"))
        },
        "reader": hashlib.sha256(Path(compile_check.__file__).read_bytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def compiled(
    variant: Variant, folder: Path | None, compile: Callable[[Variant], Compiled] = compile_variant
) -> Compiled:
    """The kept result, or what `compile` makes now.

    A refusal is never kept: it may be the machine's fault and not the kernel's.
    """
    path = folder / f"{digest_of(variant)}.json" if folder is not None else None
    kept = _read(path) if path is not None else None
    if kept is not None:
        return Compiled(variant, *(kept[name] for name in NUMBERS), instructions=Counter(kept["instructions"]))
    result = compile(variant)
    if path is not None and not result.refused:
        numbers = {name: getattr(result, name) for name in NUMBERS}
        told = {"variant": variant.name, **numbers, "instructions": dict(result.instructions)}
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(told))
        partial.replace(path)
    return result


def _read(path: Path) -> dict | None:
    """A kept result; None for one that is absent, cut off or of another form."""
    try:
        told = json.loads(path.read_text())
        numbers = [told[name] for name in NUMBERS] + list(told["instructions"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return told if all(isinstance(number, int) for number in numbers) else None
