"""What a machine or another package causes is told as that."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from cardialign.cluster.cli.causes import cause_of
from tests.support.plug_ins import install


@pytest.mark.parametrize("raw", [b"[some.group]\nno_equals_sign\n", b"[some.group]\nx\xff = a:b\n"])
def test_a_package_on_which_other_packages_fail_is_no_defect_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    install(tmp_path, "unreadable_points", "", {}, "some.group")
    (tmp_path / "unreadable_points-1.0.dist-info" / "entry_points.txt").write_bytes(raw)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((TypeError, UnicodeDecodeError)) as caught:
        importlib.metadata.entry_points(group="another.group")
    told = cause_of(caught.value)
    assert told is not None and "list of entry points that cannot be read" in told[0]
    assert str(tmp_path / "unreadable_points-1.0.dist-info") in told[0]
    assert cause_of(TypeError("of ours")) is None
