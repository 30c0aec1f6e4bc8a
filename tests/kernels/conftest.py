"""Small tensors gain nothing from a thread pool, and tests of other parts run at the same time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.kernels.interpreter import Run, compiled, interpreted

WHERE: dict[str, Run] = {"interpreted": interpreted}
if torch.cuda.is_available():
    WHERE["compiled"] = compiled


@pytest.fixture(params=WHERE)
def triton_run(request: pytest.FixtureRequest) -> Run:
    """function, *args -> what it returns where Triton kernels run: interpreted, and on a GPU where there is one."""
    return WHERE[request.param]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
