"""A pool of daemon threads: closing it takes a bounded time even when one of them hangs in a read, and so does the end
of the process.

The executor of the standard library waits for its threads when it is shut down and again when the interpreter ends; a
read from a mount or a server that never answers would then hold the process for ever.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

_Task = tuple[Future, Callable[..., Any], tuple]


class DaemonPool:
    """`threads` daemon threads that work off what is submitted, in order.

    They end with the pool, whether it is closed or forgotten.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._running: set[Future] = set()
        # the threads know the queue, not the pool: a pool that nobody holds any more ends them
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks, self._running), name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        self._end = weakref.finalize(self, _end, self._tasks, threads)
        for thread in self._threads:
            thread.start()

    def submit(self, act: Callable[..., Any], *arguments: Any) -> Future:
        """`act(*arguments)` in one of the threads. Raises RuntimeError when the pool is closed."""
        if not self._end.alive:
            raise RuntimeError("the pool is closed")
        future: Future = Future()
        self._tasks.put((future, act, arguments))
        return future

    def close(self, seconds: float) -> int:
        """Cancel what has not begun, wait up to `seconds` for what has, and return how many threads are still at it.

        Those are left to themselves: their results are cancelled and they end when, if ever, their work returns. A
        second call does nothing.
        """
        if self._end.alive:
            with contextlib.suppress(queue.Empty):
                while (task := self._tasks.get_nowait()) is not None:
                    task[0].cancel()
            self._end()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = sum(thread.is_alive() for thread in self._threads)
        self._threads = []  # a second call waits for none of them again
        if left:
            for future in list(self._running):
                with contextlib.suppress(InvalidStateError):  # done a moment ago
                    future.set_exception(CancelledError())
        return left


def _end(tasks: queue.SimpleQueue[_Task | None], threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)


def _work(tasks: queue.SimpleQueue[_Task | None], running: set[Future]) -> None:
    while (task := tasks.get()) is not None:
        _run(task, running)
        del task  # whoever waits for the next one must not keep the arrays of the last


def _run(task: _Task, running: set[Future]) -> None:
    future, act, arguments = task
    if not future.set_running_or_notify_cancel():
        return
    running.add(future)
    with contextlib.suppress(InvalidStateError):  # the pool was closed meanwhile, and nobody waits for this any more
        try:
            result = act(*arguments)
        except BaseException as error:  # handed to whoever waits for the result
            future.set_exception(error)
        else:
            future.set_result(result)
    running.discard(future)
