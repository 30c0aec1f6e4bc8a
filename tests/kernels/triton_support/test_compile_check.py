"""Every dispatched Triton kernel compiles for both architectures, without spills, onto tensor cores; faults show."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cardialign.kernels.triton_support.compile_check import (
    Compiled,
    all_variants,
    compile_variant,
    count_instructions,
    table,
)
from cardialign.kernels.triton_support.launch import Variant
from tests.support.kernels.compiled import cache_folder, compiled
from tests.support.kernels.interpreter import interpreted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is for Linux only")

PAGE = (Path(__file__).parents[3] / "kernels" / "triton_support" / "COMPILED.md").read_text()
VARIANTS = list(all_variants()) if importlib.util.find_spec("triton") else []


def small(kind: str, **changes: object) -> Variant:
    """One 64 x 64 dot by 4 warps."""
    from tests.support.kernels.small_kernels import dot_kernel

    variant = Variant(
        f"{kind} dot", dot_kernel, {"A": f"*{kind}", "B": f"*{kind}", "C": "*fp32"}, {"SIZE": 64}, num_stages=1
    )
    return replace(variant, **changes)  # type: ignore[arg-type]


def every_variant() -> Iterator[Any]:
    """All variants; those after the first of their kernel and architecture take their time in `make test-slow`."""
    seen = set()
    for variant in VARIANTS:
        first = (kernel := (variant.kernel.__name__, variant.architecture)) not in seen
        seen.add(kernel)
        name = f"{variant.name} sm_{variant.architecture}"
        yield pytest.param(variant, id=name, marks=[] if first else [pytest.mark.slow])


@pytest.mark.parametrize("variant", every_variant())
def test_a_dispatched_variant_fits(variant: Variant, pytestconfig: pytest.Config) -> None:
    result = compiled(variant, cache_folder(pytestconfig))
    assert result.registers > 0
    assert not variant.dispatched or not result.faults, result.faults
    if f"triton {version('triton')}," in PAGE:
        row = table([result])[-1]
        start = row[: row.index("|", row.index("sm_"))]
        written = [line for line in PAGE.splitlines() if line.startswith(start)]
        assert written in ([], [row]), (
            "kernels/triton_support/COMPILED.md is out of date; `cardialign bench compile` prints it anew"
        )


def test_both_architectures_and_every_pass_of_the_loss_are_among_them() -> None:
    names = {(variant.name.split(" d=")[0], variant.architecture) for variant in VARIANTS if variant.dispatched}
    assert all(
        f"| {variant.name} | sm_{variant.architecture} |" in PAGE
        for variant in VARIANTS
        if variant.name.startswith("loss")
    )
    passes = ("forward", "gradient", "targets forward", "logistic gradient")
    assert names >= {(f"loss {each}", architecture) for each in passes for architecture in (90, 80)}
    assert names >= {("loss targets gradient", 90), ("loss logistic forward", 90), ("loss absolute gradient", 90)}


def test_a_spill_and_a_fall_from_tensor_cores_are_faults() -> None:
    result = compile_variant(small("fp32"))
    spills, fall = result.faults
    assert spills.startswith("spills:")
    assert fall.startswith("has no HGMMA")
    assert "spills" in table([result])[-1]
    assert table([replace(result, variant=small("fp32", dispatched=False))])[-1].endswith(
        "HGMMA 0, HMMA 0, FFMA 2048) |"
    )


def test_half_precision_of_the_same_kernel_has_none() -> None:
    result = compile_variant(small("bf16"))
    assert result.faults == []
    assert result.instructions["HGMMA"] > 0
    assert result.programs_per_sm > 1


def test_too_much_shared_memory_is_a_fault() -> None:
    result = Compiled(small("bf16"), registers=32, shared=232449, instructions=Counter(HGMMA=1))
    assert result.faults == ["needs 232449 B of shared memory, the limit is 232448"]


def test_what_does_not_compile_is_a_fault_and_not_a_crash() -> None:
    assert compile_variant(small("bf16", constants={"SIZE": 63})).faults[0].startswith("does not compile")


def test_a_variant_that_forgets_an_argument_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"disagree about the arguments \['C'\]"):
        compile_variant(small("bf16", types={"A": "*bf16", "B": "*bf16"}))


@pytest.mark.slow
def test_kernels_imported_for_the_interpreter_cannot_be_compiled() -> None:
    assert "TRITON_INTERPRET" in interpreted(_compile_under_the_interpreter)


def _compile_under_the_interpreter() -> str:
    try:
        compile_variant(small("bf16"))
    except ValueError as error:
        return str(error)
    return "compiled"


def test_opcodes_are_counted_whole_and_with_predicates() -> None:
    listing = """
        /*0010*/                   LDL R1, [R2] ;
        /*0020*/              @!P0 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0030*/              @UP1 FFMA.FTZ R3, R4, R5, R6 ;
        /*0040*/                   LDLX R1 ;
        .L_x_STL:
    """
    assert count_instructions(listing) == Counter(LDL=1, HGMMA=1, FFMA=1)
