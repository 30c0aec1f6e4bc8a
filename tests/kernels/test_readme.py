"""What the READMEs of the package show, works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kernels"
PAGES = ("README.md", "contrastive/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(PACKAGE / page), "exec"), names)
        assert names["log_scale"].grad.isfinite().all()  # type: ignore[attr-defined]


def test_every_page_with_a_code_block_is_among_them() -> None:
    shown = {str(page.relative_to(PACKAGE)) for page in PACKAGE.rglob("README.md") if "```python" in page.read_text()}
    assert shown == set(PAGES)
