"""One `cardialign` command in a process of its own.

Its JSON object comes back, its progress goes to our stderr, its memory goes with it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

from cardialign.cluster.environment.versions import source_root
from cardialign.data_shards.errors import INTERRUPTED, TERMINATED, UserError
from cardialign.data_shards.files import parse_json


def run_command(words: list[str]) -> dict[str, Any]:
    """Run `cardialign WORDS --json` and return its result.

    Raises UserError with the command's own problem and remedy when it fails, KeyboardInterrupt when interrupted.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(source_root()), os.environ.get("PYTHONPATH", "")])),
    }
    process = subprocess.Popen(  # noqa: S603 - our own program, words of ours
        [sys.executable, "-m", "cardialign", *words, "--json"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        printed, _ = process.communicate()
    except BaseException:  # Ctrl-C reaches the command too: let it end cleanly
        process.terminate()
        process.wait(timeout=60)
        raise
    try:
        result = dict(parse_json(printed.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        result = {
            "problem": f"it ended with code {process.returncode} and no result",
            "remedy": "run the command by hand with --debug",
        }
    if process.returncode in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt
    if process.returncode != 0:
        problem = result.get("problem", f"exit code {process.returncode}")
        raise UserError(
            f"`{shlex.join(['cardialign', *words])}` failed: {problem}",
            result.get("remedy") or "run the command by hand",
        )
    return result
