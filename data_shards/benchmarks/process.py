"""A measurement in a process of its own, so that nothing measured before it is counted in its memory or its caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError


def measured_by(module: str, *words: str, **environment: str) -> dict[str, Any]:
    """Run `python -m module words` with more environment and read the JSON object that it prints. Raises DataError with its last words."""
    root = Path(__file__).absolute().parents[3]
    known: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(root), **environment}
    answer = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=root, env=known)
    if answer.returncode:
        last = " ".join(line.strip() for line in answer.stderr.strip().splitlines()[-2:])
        raise DataError(
            f"the process that measures with {module} failed: {last}",
            f"run `{sys.executable} -m {module} {' '.join(words)}`",
        )
    return dict(json.loads(answer.stdout))
