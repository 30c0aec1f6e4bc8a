"""Names from packages of other people: found, never in the way, and named when they are broken."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table, thing_at
from cardialign.data_shards.sources import SOURCES, open_source
from tests.support.plug_ins import install, see

GROUP = "cardialign.gadgets"


def table() -> Table:
    return Table("gadget", {"own": "pathlib:Path"})


def test_a_plugin_is_found_by_name_and_imported_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\nclass Thing: pass\n"
    install(tmp_path, "their_things", code, {"theirs": "their_things:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    found = table()
    assert list(found) == ["own", "theirs"] and found["theirs"] == "their_things:Thing"
    assert not (tmp_path / "imported").exists()
    assert found.find("theirs").__name__ == "Thing" and found.find("own") is Path


def test_an_unknown_name_lists_what_there_is_and_what_may_have_been_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "their_names", "class Thing: pass\n", {"spinner": "their_names:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"unknown gadget 'spiner' \(did you mean 'spinner'\?\)") as caught:
        table().find("spiner")
    assert caught.value.remedy == "known gadgets: own, spinner; or install the package that declares 'spiner'"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_package_nobody_has\n", "ModuleNotFoundError: No module named 'a_package_nobody_has'"),
        ("raise RuntimeError('out of order')\n", "RuntimeError: out of order"),
        ("", "AttributeError: .*Thing"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        (
            "from cardialign.data_shards.errors import UserError\nraise UserError('no licence')\n",
            "UserError: no licence",
        ),
        ("class Panic(BaseException): pass\nraise Panic('of a compiled package')\n", "Panic: of a compiled package"),
        (
            "class Mute(Exception):\n    def __str__(self): raise ValueError('nothing to say')\nraise Mute()\n",
            "Mute",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str, reason: str
) -> None:
    name = f"broken_{abs(hash(code))}"
    install(tmp_path, name, code, {"bad": f"{name}:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=f"gadget 'bad' is a plug-in of {name} and cannot be imported: {reason}"
    ) as caught:
        table().find("bad")
    assert f"uninstall {name}" in caught.value.remedy and "own" in caught.value.remedy
    with caplog.at_level(logging.WARNING):
        assert list(table().importable(lambda thing: thing)) == [("own", Path)]
    assert "plugin=bad action=skip" in caplog.text and name in caplog.text


@pytest.mark.parametrize("raw", [b"[cardialign.gadgets]\nno_equals_sign\n", b"[cardialign.gadgets]\nx\xff = a:b\n"])
def test_a_package_whose_entry_points_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    install(tmp_path, "unreadable_list", "", {"x": "a:b"}, GROUP)
    (tmp_path / "unreadable_list-1.0.dist-info" / "entry_points.txt").write_bytes(raw)
    install(tmp_path, "readable_list", "class Thing: pass\n", {"theirs": "readable_list:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert list(table()) == ["own", "theirs"]
    assert "unreadable_list-1.0.dist-info action=skip" in caplog.text


@pytest.mark.parametrize("name", ["--root", "two words", "x" * 200, "../up", "\u202eright"])
def test_a_name_that_nobody_could_write_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    install(tmp_path, "odd_name", "class Thing: pass\n", {name: "odd_name:Thing", "fine": "odd_name:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert list(table()) == ["own", "fine"]
    assert (
        "plugin=odd_name:Thing" in caplog.text
        and "is no word" in caplog.text
        and name[:50] + "x" * 40 not in caplog.text
    )


def test_the_first_installation_of_a_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "old", "in_two_places", "", {"old": "in_two_places:Thing"}, GROUP)
    install(tmp_path / "new", "in_two_places", "", {"new": "in_two_places:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path / "old")
    monkeypatch.syspath_prepend(tmp_path / "new")
    assert list(table()) == ["own", "new"]


def test_a_plugin_cannot_take_a_name_of_ours_or_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        tmp_path, "greedy_one", "class Thing: pass\n", {"own": "greedy_one:Thing", "shared": "greedy_one:Thing"}, GROUP
    )
    install(tmp_path, "greedy_two", "class Thing: pass\n", {"shared": "greedy_two:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    found = table()
    with caplog.at_level(logging.WARNING):
        assert list(found) == ["own", "shared"]
    assert found.find("own") is Path and found["shared"] == "greedy_one:Thing"
    assert "greedy_one:Thing" in caplog.text and "one of our own" in caplog.text and "greedy_two:Thing" in caplog.text


def test_a_word_that_means_a_row_of_ours_is_ours_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "greedy_word", "class Thing: pass\n", {"word": "greedy_word:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    found = Table("gadget", {"own": "pathlib:Path"}, aliases={"word": "own"})
    with caplog.at_level(logging.WARNING):
        assert list(found) == ["own"] and found.find("word") is Path
    assert "plugin=greedy_word:Thing" in caplog.text and "one of our own" in caplog.text
    assert {"csv", "npy", "npz"} <= set(SOURCES.aliases)


def test_what_may_have_been_meant_does_not_hang_on_case() -> None:
    with pytest.raises(UsageError, match=r"unknown gadget 'OWN' \(did you mean 'own'\?\)"):
        table().find("OWN")
    with pytest.raises(UsageError, match=r"unknown source 'PTB-XL' \(did you mean 'ptb-xl'\?\)"):
        open_source("PTB-XL", "nowhere")


def test_an_entry_point_that_names_nothing_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "odd_value", "", {"bad": "!!"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="plug-in of odd_value and cannot be imported: '!!' is not MODULE:ATTRIBUTE"):
        table().find("bad")


def test_a_plugin_that_is_the_wrong_thing_is_named_and_our_own_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "wrong_thing", "thing = 3\n", {"bad": "wrong_thing:thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    checked = Table("gadget", {"own": "pathlib:Path"}, check=lambda thing: f"it is {thing!r}")
    with pytest.raises(
        UsageError, match="gadget 'bad' is a plug-in of wrong_thing and cannot be used: it is 3"
    ) as caught:
        checked.find("bad")
    assert caught.value.remedy == "mend or uninstall wrong_thing, or choose one of: own"
    assert checked.find("own") is Path


def test_a_plugin_that_fails_when_asked_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "no_answer", "class Thing: pass\n", {"bad": "no_answer:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert list(table().importable(lambda thing: thing("a").name)) == [("own", "a")]
    assert "plugin=bad action=skip reason=gadget 'bad' is a plug-in of no_answer" in caplog.text


def test_a_defect_of_ours_is_not_blamed_on_anybody() -> None:
    with pytest.raises(ZeroDivisionError), table().blamed("own", "cannot be made"):
        raise ZeroDivisionError


def test_work_that_a_plugin_breaks_is_laid_at_its_door_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def Thing(act): return act()\n"
    install(tmp_path, "breaks_late", code, {"late": "breaks_late:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    found = table()
    thing = found.find("late")
    with pytest.raises(UsageError, match="gadget 'late' is a plug-in of breaks_late and failed in step 3: ZeroDiv"):
        with found.watched("late", "failed in step 3"):
            thing(lambda: 1 / 0)
    for passing in (OSError(28, "No space left on device"), MemoryError(), RuntimeError("CUDA out of memory")):
        with pytest.raises(type(passing)) as caught, found.watched("late", "failed"):
            thing(lambda passing=passing: (_ for _ in ()).throw(passing))
        assert caught.value is passing, "what the machine causes is nobody's defect, and a restart may cure it"
    for name in ("late", "own", "nobody"):
        with pytest.raises(ZeroDivisionError), found.watched(name, "failed"):
            1 / 0  # noqa: B018 - in code of ours


def test_every_plugin_can_be_told_with_what_is_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "well_made", "class Thing: pass\n", {"well": "well_made:Thing"}, GROUP)
    install(tmp_path, "ill_made", "1 / 0\n", {"ill": "ill_made:Thing"}, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    state = table().state()
    assert state["well"] is None and set(state) == {"well", "ill"}
    assert "plug-in of ill_made and cannot be imported: ZeroDivisionError" in str(state["ill"])


READER = "from cardialign.data_shards.sources.template import Template\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("class Odd: pass\n", "cannot be used: it is no reader: it has no options, entries, read, describe"),
        ("def Odd(root): pass\n", "cannot be used: it is of type function, not a reader class"),
        (f"{READER}class Odd(Template):\n    def options(self): return {{}}\n", "cannot be asked .*: TypeError"),
        (f"{READER}class Odd(Template):\n    options = staticmethod(lambda: 1 / 0)\n", "cannot be asked .*: ZeroDiv"),
        (f"{READER}class Odd(Template):\n    def __init__(self, root): self.x\n", "cannot be opened: AttributeError"),
    ],
)
def test_a_source_that_is_half_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    name = f"odd_reader_{abs(hash(code))}"
    install(tmp_path, name, code, {"odd": f"{name}:Odd"}, "cardialign.sources")
    see(tmp_path, SOURCES, monkeypatch)
    with pytest.raises(UsageError, match=f"source 'odd' is a plug-in of {name} and {reason}"):
        open_source("odd", tmp_path)


def test_a_source_of_another_package_is_a_source_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from cardialign.data_shards.sources.template import Template as Clinic\n"
    install(tmp_path, "clinic_ecg", code, {"clinic": "clinic_ecg:Clinic"}, "cardialign.sources")
    see(tmp_path, SOURCES, monkeypatch)
    assert "clinic" in SOURCES and SOURCES.find("clinic").__name__ == "Template"


@pytest.mark.parametrize("running", [True, False])
def test_an_import_by_name_leaves_the_collector_as_it_was(running: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if running else gc.disable)()
        assert thing_at("pathlib:Path.home")() == Path.home()
        with pytest.raises(ModuleNotFoundError):
            thing_at("no_such_module_at_all:Thing")
        assert gc.isenabled() == running
    finally:
        (gc.enable if before else gc.disable)()
