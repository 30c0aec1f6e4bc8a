"""Kernels are found by the name of the module that lists them, and none is passed over in silence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cardialign.kernels.triton_support.compile_check import all_variants

VARIANTS = """
from cardialign.kernels.triton_support.launch import Variant

def compile_variants():
    return [Variant(name, None, {}, {}) for name in %r]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with two operations; only the deeper folder and one plain module list kernels."""
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("operations", "operations/second", "operations/second/triton", "operations/first"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "operations/second/triton/variants.py").write_text(VARIANTS % (["b", "c"],))
    (tmp_path / "operations/first/variants.py").write_text(VARIANTS % (["a"],))
    (tmp_path / "operations/first/old_variants.py").write_text("raise RuntimeError('not to be imported')")
    yield importlib.import_module("operations")
    for name in [name for name in sys.modules if name.partition(".")[0] == "operations"]:
        del sys.modules[name]


def test_modules_named_variants_are_found_however_deep_in_the_order_of_their_names(package: ModuleType) -> None:
    assert [variant.name for variant in all_variants(package)] == ["a", "b", "c"]


def test_a_folder_that_cannot_be_imported_is_named_and_not_passed_over(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "operations/second/__init__.py").write_text("import no_such_library")
    with pytest.raises(ImportError, match=r"operations\.second cannot be imported"):
        list(all_variants(package))


def test_two_variants_of_one_name_are_refused(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "operations/first/variants.py").write_text(VARIANTS % (["c"],))
    with pytest.raises(ValueError, match=r"operations\.second\.triton\.variants has a second c for sm_90"):
        list(all_variants(package))
