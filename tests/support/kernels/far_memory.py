"""Launches on tensors of billions of elements, of which only the last pages exist.

For tests of offsets, in the interpreter's helper process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StoppedError(Exception):
    """A kernel that a test does not want to run was about to."""


@contextmanager
def last_program_of_every_launch(stop_before: str = "") -> Iterator[dict[str, dict[str, Any]]]:
    """Grids are cut to their last program, which still thinks it is the last of all.

    Yields the arguments of every kernel by its name.

    stop_before: name of the kernel that raises StoppedError instead of running.
    """
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    grid_of, program_of = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_get_program_id

    launches: dict[str, dict[str, Any]] = {}

    def call(self: Any, *args: Any, **options: Any) -> Any:
        if self.fn.__name__ == stop_before:
            raise StoppedError
        launches[self.fn.__name__] = {**dict(zip(self.arg_names, args, strict=False)), **options}
        last = [side - 1 for side in self.grid] + [0, 0]
        self.grid = (1,)
        interpreter.InterpreterBuilder.create_get_program_id = lambda _, axis: interpreter.TensorHandle(
            numpy.array([last[axis]], dtype=numpy.int32), tl.int32
        )
        return grid_of(self, *args, **options)

    interpreter.GridExecutor.__call__ = call
    try:
        yield launches
    finally:
        interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_get_program_id = grid_of, program_of


def far_tensor(end: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros (shape) that nobody wrote, with `end` as the last rows, in the upper half of its storage."""
    torch.use_deterministic_algorithms(False)  # other tests of this process let it fill all memory with NaN
    whole = torch.empty((2 * shape[0], *shape[1:]), dtype=end.dtype)[shape[0] :]
    whole[-len(end) :] = end
    return whole
