"""Where in a model the first number that is not finite comes up: in its inputs, on the way forward, or back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class FirstNonFinite:
    """As a context it looks at every module's output, and at the gradient of that output.

    found: where and what; None while all is finite. It looks at values on the host after each module: for one step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[str, str] | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> FirstNonFinite:
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(self._looks_at(name, module)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def look_at_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """What the method made of the batch, by name."""
        for name, tensor in inputs.items():
            self._note("inputs", name, tensor)

    def _looks_at(self, name: str, module: nn.Module) -> Any:
        said = f"{name or 'the method itself'} ({type(module).__name__})"

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self._note("forward", said, tensor)
                if tensor.requires_grad and tensor.grad_fn is not None:
                    with contextlib.suppress(RuntimeError):  # a view that takes no hook
                        tensor.register_hook(lambda gradient: self._note("backward", said, gradient))

        return look

    def _note(self, where: str, said: str, tensor: Tensor) -> None:
        if self.found is None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "nan" if bool(torch.isnan(tensor).any()) else "inf"
            words = {"backward": "gradient of the output of "}
            self.found = {"where": where, "module": said, "what": words.get(where, "") + f"{said}: {what}"}


@dataclass(frozen=True)
class Inspection:
    """The step (1-based) whose modules are looked at; None for none."""

    step: int | None = None

    @contextlib.contextmanager
    def of(self, step: int, method: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[FirstNonFinite | None]:
        """What is found while a step is made; None for every other step."""
        if step != self.step:
            yield None
            return
        with FirstNonFinite(method) as first:
            first.look_at_inputs(inputs)
            yield first


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
