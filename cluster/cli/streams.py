"""stdout, stderr and the log of a command: they take every text, show none of its control characters, and may go."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from cardialign.data_shards.shown import shown


class _SafeLines(logging.Formatter):
    """A decision is one line, whatever names from the data stand in it; a traceback below it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        return shown(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return shown(super().formatException(ei), lines=True)


def open_streams(level: int) -> None:
    """Ready both streams and the log, from `level` on to stderr.

    A closed one (`>&-`) leads nowhere; one of a narrow encoding writes `\\xe9` for what it cannot.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stands until the interpreter ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeLines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)  # libraries quote names from the data in theirs


def say(lines: Iterable[str]) -> None:
    """Results, a line each, to stdout."""
    sys.stdout.write("".join(f"{shown(line)}\n" for line in lines))
    sys.stdout.flush()


def tell(text: str) -> None:
    """Lines of our own about what went wrong, with names from the data in them, to stderr."""
    with contextlib.suppress(OSError):
        sys.stderr.write(shown(text, lines=True))
        sys.stderr.flush()


def leave_stdout() -> None:
    """Its reader or its disk has gone: what is left in the buffer would fail once more when the interpreter ends."""
    with contextlib.suppress(OSError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
