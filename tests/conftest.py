"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardialign.cluster.environment.put_off import put_off
from cardialign.pretrain.choices import ENCODERS, METHODS
from tests.support.soak import more_examples

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes, and ranks beside them, share the cores
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
put_off()  # as every command does


LONG = (
    "tests/end_to_end/test_demo.py",
    "tests/end_to_end/test_by_hand.py",
    "tests/end_to_end/",
    "tests/faults/",
    "tests/cluster/evaluations/test_beside.py",
    "tests/cluster/studies/",
    "tests/packaging/",
    "tests/pretrain/methods/test_melp.py",
    "tests/pretrain/training/",
    "tests/kernels/triton_support/",
    "tests/cluster/",
    "tests/pretrain/",
    "tests/test_house.py",
    "tests/kernels/",
)
"""Where the long modules are, longest first. Two processes end together when the short ones come last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples", type=int, default=1, metavar="N", help="N times the examples of property tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long modules first; the order within them, and of all others, stays. What takes minutes on real parts of a
    deployment is counted as skipped unless it is asked for."""
    asked = os.environ.get("CARDIALIGN_DEPLOYMENT") == "1"
    for item in items:
        if not asked and item.get_closest_marker("deployment"):
            item.add_marker(pytest.mark.skip(reason="takes minutes on real parts of a deployment: make test-deploy"))
    for test in {item.obj for item in items if isinstance(item, pytest.Function)}:
        more_examples(test, config.getoption("--examples"))

    def place(item: pytest.Item) -> int:
        return next((rank for rank, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real recordings; tests that need it are skipped where it is absent."""
    folder = os.environ.get("CARDIALIGN_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CARDIALIGN_REAL_DATA names no folder with real recordings")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def tables_stay() -> Iterator[None]:
    """The names of one module's inventions are none in the next, whichever that is in this process."""
    before = [dict(table.own) for table in (ENCODERS, METHODS)]
    yield
    assert [table.own for table in (ENCODERS, METHODS)] == before, "a test left a name in a table of ours"
