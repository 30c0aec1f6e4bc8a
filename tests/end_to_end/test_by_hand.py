"""The path by hand and the same words from Python, as the tutorial gives them; and the consumer's commands on it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.readme import SITE, TUTORIAL, block_with, blocks, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(700)]


def test_the_path_by_hand_and_from_python(tmp_path: Path, shell: dict[str, str]) -> None:
    run(block_with("cardialign doctor", page=TUTORIAL), tmp_path, shell)
    assert (tmp_path / "work" / "ecg.png").is_file()
    assert (tmp_path / "work" / "pulled" / "model.safetensors").is_file()
    assert (tmp_path / "work" / "embedding.npy").is_file()
    (tmp_path / "block.py").write_text(blocks("python", TUTORIAL)[0])
    printed = run(f"{shlex.quote(sys.executable)} block.py", tmp_path, shell)
    assert "(12, 5000)" in printed and (tmp_path / "work" / "again.png").is_file()
    shutil.rmtree(tmp_path / "work" / "pulled")
    printed = run(block_with("registry pull", page=f"{SITE}/users/consumer.md"), tmp_path, shell)
    assert "my-encoder" in printed and (tmp_path / "work" / "pulled" / "golden.safetensors").is_file()
