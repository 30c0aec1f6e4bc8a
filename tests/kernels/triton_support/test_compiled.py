"""Compile results are kept for exactly what they were made from: another kernel, variant or compiler compiles anew."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from cardialign.kernels.triton_support.compile_check import Compiled, Variant
from tests.support.kernels import compiled as kept
from tests.support.kernels.compiled import cache_folder, compiled, digest_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is for Linux only")

KERNEL = """
import triton
import triton.language as tl

FACTOR = tl.constexpr(2)

@triton.jit
def scaled(x):
    return x * FACTOR

@triton.jit
def kernel(X, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(X + index, scaled(tl.load(X + index)))
"""


def module_of(folder: Path, source: str) -> ModuleType:
    """A kernel reads its source from its file, so every text gets a file and a name of its own."""
    name = f"kernel_{len(list(folder.iterdir()))}"
    (folder / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def variant_of(tmp_path: Path) -> Callable[[str], Variant]:
    folder = tmp_path / "kernels"
    folder.mkdir()
    return lambda source: Variant("scaled", module_of(folder, source).kernel, {"X": "*fp32"}, {"SIZE": 64})


class Compiler:
    """Counts how often it is asked."""

    def __init__(self, refused: str = "") -> None:
        self.asked, self.refused = 0, refused

    def __call__(self, variant: Variant) -> Compiled:
        self.asked += 1
        return Compiled(variant, 32, 0, 1024, Counter(HGMMA=3, FFMA=7), seconds=1.0, refused=self.refused)


def test_a_second_run_reads_what_the_first_has_compiled(variant_of: Callable[[str], Variant], tmp_path: Path) -> None:
    compiler = Compiler()
    first, second = (compiled(variant_of(KERNEL), tmp_path, compiler) for _ in range(2))
    assert compiler.asked == 1
    assert replace(second, variant=first.variant, seconds=1.0) == first and second.faults == first.faults == []


def test_a_variant_is_judged_by_what_is_expected_of_it_now(
    variant_of: Callable[[str], Variant], tmp_path: Path
) -> None:
    variant = variant_of(KERNEL)
    compiled(variant, tmp_path, Compiler())
    judged = compiled(replace(variant, multiplies_with="HMMA"), tmp_path, Compiler(refused="not asked"))
    assert judged.faults == ["has no HMMA: HGMMA 3, HMMA 0, FFMA 7"]


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("tl.store(X + index, scaled", "tl.store(X + index, 1 + scaled"),
        ("return x * FACTOR", "return x + FACTOR"),
        ("tl.constexpr(2)", "tl.constexpr(3)"),
    ],
    ids=["the kernel", "a function it calls", "a constant that function reads"],
)
def test_whatever_the_kernel_reaches_is_part_of_its_digest(
    variant_of: Callable[[str], Variant], written: str, instead: str
) -> None:
    assert KERNEL.count(written) == 1
    assert digest_of(variant_of(KERNEL)) != digest_of(variant_of(KERNEL.replace(written, instead)))


@pytest.mark.parametrize(
    "change",
    [
        {"types": {"X": "*bf16"}},
        {"constants": {"SIZE": 128}},
        {"architecture": 80},
        {"num_warps": 8},
        {"num_stages": 3},
        {"aligned": ("X",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_variant_of_the_kernel_has_another_digest(variant_of: Callable[[str], Variant], change: dict) -> None:
    variant = variant_of(KERNEL)
    assert digest_of(variant) != digest_of(replace(variant, **change))


def test_another_triton_has_another_digest(
    variant_of: Callable[[str], Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(KERNEL)
    before = digest_of(variant)
    monkeypatch.setattr(kept, "version", lambda name: f"{name} of tomorrow")
    assert digest_of(variant) != before


@pytest.mark.parametrize("content", ["", '{"registers": 3', "[]", '{"registers": "32", "stack": 0, "shared": 0}'])
def test_a_damaged_result_is_compiled_anew(variant_of: Callable[[str], Variant], tmp_path: Path, content: str) -> None:
    compiler = Compiler()
    variant = variant_of(KERNEL)
    compiled(variant, tmp_path, compiler)
    (tmp_path / f"{digest_of(variant)}.json").write_text(content)
    assert compiled(variant, tmp_path, compiler).registers == 32
    assert compiler.asked == 2


def test_a_refusal_is_never_kept(variant_of: Callable[[str], Variant], tmp_path: Path) -> None:
    compiler = Compiler(refused="does not compile: out of memory")
    assert all(compiled(variant_of(KERNEL), tmp_path, compiler).faults for _ in range(2))
    assert compiler.asked == 2 and not list(tmp_path.glob("*.json"))


def test_the_folder_can_be_named(pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIALIGN_TEST_CACHE", str(tmp_path / "cache"))
    assert cache_folder(pytestconfig) == tmp_path / "cache" / "compiled"
    assert (tmp_path / "cache" / "compiled").is_dir()
