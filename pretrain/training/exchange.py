"""How long this rank stands in collectives, measured from outside: their arguments and results are not touched.

torch tells nobody how long a process waited. So while an `ExchangeClock` is open, the calls that all collectives of
torch, DeepSpeed and our losses go through are taken by their ends: those of the process group, where NCCL's kernels go
onto the stream itself when nobody asks for a handle, and `Work.wait`, where gloo stands.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

CALLS = (
    "allreduce", "allreduce_coalesced", "allgather", "_allgather_base", "allgather_coalesced",
    "allgather_into_tensor_coalesced", "all_gather_single", "reduce", "reduce_scatter", "_reduce_scatter_base",
    "reduce_scatter_single", "reduce_scatter_tensor_coalesced", "broadcast", "alltoall", "alltoall_base",
    "all_to_all_single", "send", "recv", "barrier",
)  # fmt: skip
"""Methods of a process group, by the names of several releases of torch."""
Pair = tuple[Any, Any]
"""CUDA events at both ends of a stretch of the stream."""


class Waited:
    """Time in collectives: seconds of the host on CPU; on CUDA pairs of events, whose time is known once they passed.

    On CUDA only the stream of the step counts: what another stream exchanges meanwhile (ZeRO-3 reads ahead) costs the
    step nothing, and what the step's stream then waits for it counts as the step's own time.
    """

    def __init__(self) -> None:
        self.host = 0.0
        self.pairs: list[Pair] = []

    def add(self, other: Waited) -> None:
        self.host += other.host
        self.pairs += other.pairs

    @property
    def passed(self) -> bool:
        """True when `seconds` can be read without waiting for the device."""
        return all(end.query() for _, end in self.pairs)

    @property
    def seconds(self) -> float:
        return self.host + sum(begin.elapsed_time(end) for begin, end in self.pairs) / 1000.0


class ExchangeClock:
    """A context in which every wait for a collective of this process is timed; `take` gives what came since the last.

    Costs a few readings of a clock per collective (CPU) or events on the stream (CUDA), and never synchronises.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda" and torch.cuda.is_available()
        self._waited = Waited()
        self._originals: list[tuple[type, str, Any]] = []

    def take(self) -> Waited:
        taken, self._waited = self._waited, Waited()
        return taken

    def __enter__(self) -> ExchangeClock:
        if dist.is_initialized():
            self._replace(dist.distributed_c10d.Work, "wait")
            for name in CALLS:
                if name in vars(dist.ProcessGroup):
                    self._replace(dist.ProcessGroup, name)
            self._stream = torch.cuda.current_stream(self.device) if self.cuda else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def _replace(self, owner: Any, name: str) -> None:
        self._originals.append((owner, name, vars(owner)[name]))  # as it lies there: `getattr` would unwrap it
        setattr(owner, name, (self._on_device if self.cuda else self._on_host)(getattr(owner, name)))

    def _on_host(self, original: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return original(*args, **kwargs)
            finally:
                self._waited.host += clock() - began

        return timed

    def _on_device(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if torch.cuda.current_stream(self.device) != self._stream:
                return original(*args, **kwargs)
            begin = self.mark()
            try:
                return original(*args, **kwargs)
            finally:
                self._waited.pairs.append((begin, self.mark()))

        return timed

    def mark(self) -> Any:
        """An event on the current stream of the device."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
