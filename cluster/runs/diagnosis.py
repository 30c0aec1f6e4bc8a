"""Why a worker group died, in words: what Ray raises, told as what happened to which rank, with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cardialign.data_shards.errors import UserError

AGAIN = "run the same command again: it goes on from the newest committed checkpoint"
_KILLED = (
    "its process was killed by signal 9 or crashed; on Linux that is mostly the kernel's out-of-memory killer",
    "give the workers more memory: fewer workers per node, a smaller training.micro_batch or data.prefetch",
)
_MEMORY = (
    "it was killed (signal 9) because its node ran out of memory",
    "give the workers more memory: fewer workers per node, a smaller training.micro_batch or data.prefetch",
)
CAUSES: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"OutOfMemoryError|running low on memory|out-of-memory monitor|memory pressure", _MEMORY),
    (r"CUDA out of memory|CUDA error: out of memory", (
        "the memory of its GPU is full", "set a smaller training.micro_batch, a higher training.zero_stage, or bf16",
    )),
    (r"No space left on device|Disk quota exceeded|ENOSPC", (
        "a disk is full (No space left on device)",
        "free space in the run directory, /tmp and /dev/shm of the nodes (`cardialign doctor` shows them)",
    )),
    (r"NodeDiedError|[Nn]ode (was )?(died|dead|terminated|failed|unexpectedly)|node has been marked dead|owner node", (
        "its node died or cannot be reached", "look at that node (`ray status`)",
    )),
    (r"EADDRINUSE|[Aa]ddress already in use|failed to bind", (
        "a network port was taken by another process", "nothing is to be done but to start again",
    )),
    (r"unexpected system error|exited unexpectedly|SIGKILL|OOM killer|connection error code 2|ActorDiedError|"
     r"ActorUnavailableError|The actor died|worker died", _KILLED),
    (r"HealthCheckTimeout|health check", (
        "it gave no answer for too long", "look at its host: a stopped process, a stuck file system, a cut network",
    )),
    (r"Connection closed by peer|Connection reset|Broken pipe|NCCL.*(timeout|unhandled)|Timed out waiting", (
        "its connection to another rank broke or timed out",
        "look at the other ranks and the network; with several networks set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME",
    )),
)  # fmt: skip
"""Pattern of Ray's (or the system's) words -> (what happened, the way out); the first that fits is taken."""


def told(error: BaseException, logs: Path) -> UserError:
    """`error` of `trainer.fit()` as a UserError. logs: folder of the worker logs, named in the remedy."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return cause
    failures = dict(getattr(error, "worker_failures", None) or {})
    if not failures:
        happened, remedy = _cause(error)
        return UserError(f"training failed: {happened}", f"{remedy}; see the logs under {logs}; then {AGAIN}")
    remedies = list(dict.fromkeys(remedy for _, problem in sorted(failures.items()) if (remedy := _cause(problem)[1])))
    shown = ", ".join(f"rank-{rank}.log" for rank in sorted(failures))
    return UserError(
        f"training failed on {what_happened(failures)}",
        "; ".join([*remedies, f"see {shown} in {logs}", f"then {AGAIN}"]),
    )


def what_happened(failures: Mapping[int, BaseException]) -> str:
    """What ended a worker group, by rank, in one line."""
    return "; ".join(f"rank {rank}: {_cause(problem)[0]}" for rank, problem in sorted(failures.items()))


def _cause(error: BaseException) -> tuple[str, str]:
    """(what happened, the way out) for one rank or for the controller."""
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error) if not _is_wrapper(cause))
    last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    for pattern, words in CAUSES:
        if re.search(pattern, text):
            happened, remedy = words
            own = last if _is_own(error) else ""
            return (f"{happened} ({own})" if own and own not in happened else happened), remedy
    return last, "see what the worker wrote"


def _is_own(error: BaseException) -> bool:
    """The worker's own exception, whose last line says more than our words; not one of Ray's about its death."""
    return any(_is_wrapper(cause) for cause in _causes(error))


def _is_wrapper(error: BaseException) -> bool:
    """Ray's wrapper around an exception of the training loop; its text is a traceback."""
    return type(error).__name__ == "UserExceptionWithTraceback"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it wraps, in the ways of Ray and of Python."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        names = ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")
        inner = [getattr(cause, name, None) for name in names]
        inner += list((getattr(cause, "worker_failures", None) or {}).values())
        waiting += [each for each in inner if isinstance(each, BaseException)]
