"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real recordings; tests that need it are skipped where it is absent."""
    folder = os.environ.get("CARDIALIGN_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CARDIALIGN_REAL_DATA names no folder with real recordings")
    return Path(folder)
