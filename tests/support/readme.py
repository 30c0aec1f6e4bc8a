"""The code blocks of the README, or of another page, and running one as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = "deploy/site/docs"
TUTORIAL, RECORDINGS = f"{SITE}/tutorial.md", f"{SITE}/guides/recordings.md"
EVALUATION, OTHER_METHODS = f"{SITE}/guides/evaluation.md", f"{SITE}/guides/methods.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str, page: str = "README.md") -> list[str]:
    return [code for kind, code in BLOCK.findall((ROOT / page).read_text()) if kind == language]


def block_with(word: str, language: str = "bash", page: str = "README.md") -> str:
    found = [code for code in blocks(language, page) if word in code]
    assert len(found) == 1, f"{len(found)} {language} blocks of {page} hold {word!r}"
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
