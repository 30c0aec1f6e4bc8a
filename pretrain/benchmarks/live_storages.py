"""What a computation would hold in memory and cost, found on tensors without storage (`meta`): nothing is computed.

`LiveStorages` counts every block that operators make while it is alive, and their FLOPs as PyTorch's counter does.
`AsOnDevice` brings two things to `meta` that it lacks: attention that keeps no matrix of scores, as flash kernels and
PyTorch's CPU kernel do, and autocast.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

HALVED = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d",
    "conv_transpose1d", "scaled_dot_product_attention",
}  # fmt: skip
"""Functions whose operands autocast turns into bf16, on both kinds of device."""
WHOLE_ON_CUDA = {
    "layer_norm", "group_norm", "softmax", "log_softmax", "logsumexp", "norm", "vector_norm", "exp", "log", "pow",
    "rsqrt", "reciprocal", "sum", "prod", "cumsum",
}  # fmt: skip
"""Functions whose operands autocast turns into float32 on CUDA (its reference lists them); on a CPU they stay."""


class LiveStorages(TorchDispatchMode):
    """Bytes of the blocks that operators under it have made and that are alive, the most there were, and FLOPs.

    given: tensors that exist before, whose views are no new blocks. `with_gradients` is the most of the blocks and of
    the gradients that `take_off` took together. `moved`: bytes that operators read and wrote, each by itself.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.highest = self.gradients = self.with_gradients = self.flop = self.moved = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._shapes: dict[Any, Any] = {}
        for tensor in given:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = self._made(func, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **kwargs, out_val=made)
        new = sum(self._add(tensor) for tensor in _tensors(made))
        if new:
            self.moved += new + sum(tensor.numel() * tensor.element_size() for tensor in _tensors(args))
        return made

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What an operator makes. On `meta` its shapes follow from those of its operands alone, which PyTorch finds in
        Python, slowly: a second block of an encoder takes them from the first."""
        if func._schema.is_mutable or any(each.alias_info is not None for each in func._schema.returns):
            return func(*args, **kwargs)
        key = (func, _described(args), _described(tuple(kwargs.items())))
        try:
            known = self._shapes.get(key)
        except TypeError:  # an operand that is no key
            return func(*args, **kwargs)
        if known is not None:
            return _again(known)
        made = func(*args, **kwargs)
        tensors, given = list(_tensors(made)), [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        blocks = {each.untyped_storage() for each in tensors}
        own = len(blocks) == len(tensors) and not blocks & {each.untyped_storage() for each in given}
        if tensors and own and all(each.is_meta for each in [*tensors, *given]):
            self._shapes[key] = _described(made)
        return made

    def take_off(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count the gradients of these apart, and let go of each as soon as it is whole."""

        def whole(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.gradients += parameter.grad.untyped_storage().nbytes()
            parameter.grad = None

        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(whole)

    def _add(self, tensor: Tensor) -> int:
        """Bytes of a block that is new; 0 of a view."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return 0
        self._known[storage] = size = storage.nbytes()
        self.live += size
        self.highest = max(self.highest, self.live)
        self.with_gradients = max(self.with_gradients, self.live + self.gradients)
        weakref.finalize(storage, self._let_go, size)
        return size

    def _let_go(self, size: int) -> None:
        self.live -= size


class _Shape(NamedTuple):
    """What another tensor without storage is made from."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Value(NamedTuple):
    """Any other operand: 2, 2.0 and True are the same key, and make different types."""

    kind: type
    value: Any


def _described(values: Any) -> Any:
    """Operands or results with a shape in the place of each tensor, and tuples in that of lists."""
    if isinstance(values, Tensor):
        return _Shape(tuple(values.shape), values.stride(), values.dtype, values.device)
    if isinstance(values, list | tuple):
        return tuple(_described(value) for value in values)
    return _Value(type(values), values)


def _again(described: Any) -> Any:
    if isinstance(described, _Shape):
        return torch.empty_strided(described.size, described.stride, dtype=described.dtype, device=described.device)
    return described.value if isinstance(described, _Value) else tuple(_again(each) for each in described)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors of an operator's arguments or results: they stand there by themselves, or in lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


class AsOnDevice(TorchFunctionMode):
    """Calls of `meta` tensors as a device makes them; precision "bf16": under autocast, weights cast once."""

    def __init__(self, device: str, precision: str) -> None:
        super().__init__()
        self.half = HALVED if precision == "bf16" else set()
        self.whole = WHOLE_ON_CUDA if precision == "bf16" and device == "cuda" else set()
        self._cast = WeakIdKeyDictionary()  # by identity, which another tensor may have when one is gone

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__bool__" and args[0].is_meta:  # is nothing padded, is all there: nobody knows, so masks are made
            return False
        if name in self.half:
            args, kwargs = tree_map_only(Tensor, self._halved, (args, kwargs))
        elif name in self.whole:
            args, kwargs = tree_map_only(Tensor, _whole, (args, kwargs))
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _halved(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not tensor.is_leaf or not tensor.requires_grad or tensor._is_view():  # as autocast asks
            return tensor.to(torch.bfloat16)
        if tensor not in self._cast:
            self._cast[tensor] = tensor.to(torch.bfloat16)
        cast: Tensor = self._cast[tensor]
        return cast


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **others: Any) -> Tensor:
    """Attention of q (B, H, N, Dh) whose forward keeps its operands, its result and one log-sum per query."""
    if attn_mask is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        bias = torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:-1], k.shape[-2])
        found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)
    result: Tensor = found[0]
    return result
