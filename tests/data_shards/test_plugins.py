"""Names from packages of other people: found, never in the way, and named when they are broken."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table
from cardialign.data_shards.sources import SOURCES

GROUP = "cardialign.gadgets"


def install(folder: Path, package: str, code: str, points: dict[str, str], group: str = GROUP) -> None:
    """What pip leaves behind: a module and a dist-info folder with its entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")


def table() -> Table:
    return Table("gadget", {"own": "pathlib:Path"})


def test_a_plugin_is_found_by_name_and_imported_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\nclass Thing: pass\n"
    install(tmp_path, "their_things", code, {"theirs": "their_things:Thing"})
    monkeypatch.syspath_prepend(tmp_path)
    found = table()
    assert list(found) == ["own", "theirs"] and found["theirs"] == "their_things:Thing"
    assert not (tmp_path / "imported").exists()
    assert found.find("theirs").__name__ == "Thing" and found.find("own") is Path


def test_an_unknown_name_lists_what_there_is_and_what_may_have_been_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "their_names", "class Thing: pass\n", {"spinner": "their_names:Thing"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"unknown gadget 'spiner' \(did you mean 'spinner'\?\)") as caught:
        table().find("spiner")
    assert caught.value.remedy == "known gadgets: own, spinner"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_package_nobody_has\n", "ModuleNotFoundError: No module named 'a_package_nobody_has'"),
        ("raise RuntimeError('out of order')\n", "RuntimeError: out of order"),
        ("", "AttributeError: .*Thing"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_named_and_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str, reason: str
) -> None:
    name = f"broken_{abs(hash(code))}"
    install(tmp_path, name, code, {"bad": f"{name}:Thing"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=f"gadget 'bad' is a plug-in of {name} and cannot be imported: {reason}"
    ) as caught:
        table().find("bad")
    assert f"uninstall {name}" in caught.value.remedy and "own" in caught.value.remedy
    with caplog.at_level(logging.WARNING):
        assert list(table().importable()) == [("own", Path)]
    assert "plugin=bad action=skip" in caplog.text and name in caplog.text


def test_a_plugin_cannot_take_a_name_of_ours_or_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "greedy_one", "class Thing: pass\n", {"own": "greedy_one:Thing", "shared": "greedy_one:Thing"})
    install(tmp_path, "greedy_two", "class Thing: pass\n", {"shared": "greedy_two:Thing"})
    monkeypatch.syspath_prepend(tmp_path)
    found = table()
    with caplog.at_level(logging.WARNING):
        assert list(found) == ["own", "shared"]
    assert found.find("own") is Path and found["shared"] == "greedy_one:Thing"
    assert "greedy_one:Thing" in caplog.text and "one of our own" in caplog.text and "greedy_two:Thing" in caplog.text


def test_a_source_of_another_package_is_a_source_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from cardialign.data_shards.sources.template import Template as Clinic\n"
    install(tmp_path, "clinic_ecg", code, {"clinic": "clinic_ecg:Clinic"}, group="cardialign.sources")
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Table("source", SOURCES.own)
    assert "clinic" in fresh and fresh.find("clinic").__name__ == "Template"
