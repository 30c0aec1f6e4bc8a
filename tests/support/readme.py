"""The code blocks of the README, and running one as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


def block_with(word: str, language: str = "bash") -> str:
    found = [code for code in blocks(language) if word in code]
    assert len(found) == 1, f"{len(found)} {language} blocks of the README hold {word!r}"
    return found[0]


def run(code: str, folder: Path, environment: dict[str, str], deadline: float = 600) -> str:
    """Run a block with `bash -e` in `folder`; its stdout. Fails with everything it printed."""
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=deadline,
    )
    assert process.returncode == 0, (
        f"{code}\n--- stdout\n{process.stdout[-4000:]}\n--- stderr\n{process.stderr[-4000:]}"
    )
    return process.stdout
