"""What the README of the package shows, works."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_every_code_block_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(README), "exec"), names)
        assert names["log_scale"].grad.isfinite().all()  # type: ignore[attr-defined]
