"""Report encoders: the one that ships, and a small one as a user would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder
from tests.support.small_bert import write_small_bert


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder(TextConfig())


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bert(tmp_path_factory.mktemp("encoders") / "small-bert")
