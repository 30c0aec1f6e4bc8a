"""The interpreter's bfloat16 is repaired for our tests; these fail when the repair breaks or is no longer needed."""

from __future__ import annotations

import pytest

from tests.support.kernels.interpreter import interpreted


def _multiply_and_cast(repaired: bool) -> tuple[float, float]:
    """Largest relative error of a bfloat16 dot, and share of float32 -> bfloat16 casts that differ from torch's."""
    import torch

    from tests.support.kernels import interpreter_bf16
    from tests.support.kernels.small_kernels import cast_kernel, dot_kernel

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 16, generator=generator).bfloat16()
    product = torch.full((16, 16), float("nan"))
    values = torch.randn(256, generator=generator)
    values[:5] = torch.tensor(
        [float("inf"), -float("inf"), 1.00390625, 1.01171875, 3.0e38]
    )  # two ties, one towards each side
    cast = torch.empty(256, dtype=torch.bfloat16)
    (interpreter_bf16.install if repaired else interpreter_bf16.remove)()
    try:
        dot_kernel[(1,)](a, b, product, 16)
        cast_kernel[(1,)](values, cast, 256)
    finally:
        interpreter_bf16.install()
    truth = a.double() @ b.double()
    error = (product.double() - truth).abs().max() / truth.abs().max()
    return float(error), float((cast != values.bfloat16()).double().mean())


def test_the_repair_gives_what_tensor_cores_and_casts_give() -> None:
    dot_error, wrong_casts = interpreted(_multiply_and_cast, True)
    assert dot_error < 1e-6
    assert wrong_casts == 0


@pytest.mark.parametrize(("operation", "limit"), [("tl.dot", 1.0), ("the cast", 0.2)])
def test_the_repair_is_still_needed(operation: str, limit: float) -> None:
    measured = dict(zip(("tl.dot", "the cast"), interpreted(_multiply_and_cast, False), strict=True))[operation]
    assert not measured < limit, (
        f"triton's interpreter got {operation} right by itself: take that part of interpreter_bf16.py out"
    )


def test_nothing_else_is_multiplied_by_the_repair() -> None:
    assert interpreted(_mixed_types) == "TypeError"


def _mixed_types() -> str:
    import torch

    from tests.support.kernels.small_kernels import dot_kernel

    try:
        dot_kernel[(1,)](
            torch.ones(16, 16, dtype=torch.bfloat16), torch.ones(16, 16, dtype=torch.float16), torch.ones(16, 16), 16
        )
    except Exception as error:
        return "TypeError" if "TypeError" in repr(error) or "dtype" in repr(error) else repr(error)
    return "accepted"
