"""`shards build` with readers of other packages: a broken one, or one that wants our words, is in nobody's way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import SOURCES
from tests.support.plug_ins import install, see
from tests.support.wfdb_files import ecg_counts, write_record

READER = """
from cardialign.data_shards.sources.arrays import Arrays
class Reader(Arrays):
    def __init__(self, root, **options):
        self.given = {key: options.pop(key) for key in %r if key in options}
        assert all(self.given.values()), self.given
        super().__init__(root, **options)
    @classmethod
    def options(cls):
        return {**super().options(), **dict.fromkeys(%r, "a word of theirs")}
"""


def build(cardialign: Callable, source: str, root: Path, out: Path, *words: object) -> dict:
    np.save(root / "one.npy", np.random.default_rng(0).standard_normal((12, 1000)).astype(np.float32))
    given = ("--record-rate", 100, "--unit", "mV", "--workers", 1)
    return cardialign("shards", "build", source, "--root", root, "--out", out, *given, *words)


@pytest.mark.parametrize(
    "code",
    [
        "class Reader: pass\n",
        "Reader = 3\n",
        "import sys\nsys.exit(3)\n",
        "from cardialign.data_shards.sources.template import Template\n"
        "class Reader(Template):\n    options = classmethod(lambda cls: 1 / 0)\n",
        "from cardialign.data_shards.sources.template import Template\n"
        "class Reader(Template):\n    options = classmethod(lambda cls: ['gain'])\n",
    ],
)
def test_a_half_broken_reader_is_in_the_log_and_all_others_work(
    cardialign: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    name = f"half_reader_{abs(hash(code))}"
    install(tmp_path / "site", name, code, {"half": f"{name}:Reader"}, "cardialign.sources")
    see(tmp_path / "site", SOURCES, monkeypatch)
    assert build(cardialign, "arrays", tmp_path, tmp_path / "out").json["records"] == 1
    assert "plugin=half action=skip" in caplog.text and name in caplog.text
    answer = build(cardialign, "half", tmp_path, tmp_path / "other", "--overwrite")
    assert answer.code == 2 and f"plug-in of {name}" in answer.json["problem"]


def test_options_that_are_called_like_ours_are_reached_by_option_alone(
    cardialign: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["limit", "out", "json", "debug", "help", "option", "two words", ""]
    install(
        tmp_path / "site", "word_taker", READER % (words, words), {"taker": "word_taker:Reader"}, "cardialign.sources"
    )
    see(tmp_path / "site", SOURCES, monkeypatch)
    answer = build(cardialign, "taker", tmp_path, tmp_path / "out", "--limit", 1, "--option", "limit=theirs")
    assert answer.code == 0 and answer.json["records"] == 1
    for word in words:
        assert f"source=taker option={word} action=no flag of its own" in caplog.text


def test_a_flag_that_the_reader_does_not_take_is_refused_in_the_word_that_was_typed(
    cardialign: Callable, tmp_path: Path
) -> None:
    answer = build(cardialign, "mimic-iv-ecg", tmp_path, tmp_path / "out")
    assert answer.code == 2 and answer.json["problem"] == "source 'mimic-iv-ecg' has no option --record-rate"
    assert (
        "--patients" in answer.json["remedy"] and "the rate of the shards is --sampling-rate" in answer.json["remedy"]
    )
    assert "sampling_rate" not in answer.json["remedy"]


def test_a_salt_comes_from_a_file_or_the_environment_and_never_only_from_what_lists_of_processes_show(
    cardialign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "records" / "one", ecg_counts())
    (tmp_path / "salt").write_text("0123456789abcdef\n")

    def patient(out: str, *words: Any) -> str:
        answer = cardialign("shards", "build", "wfdb", "--root", tmp_path / "records", "--out", tmp_path / out,
                            "--workers", 1, *words)  # fmt: skip
        assert answer.code == 0, answer.json
        assert ShardSet.open(tmp_path / out).manifest["source"]["options"]["salted"]
        return ShardSet.open(tmp_path / out).read_record(0).patient

    wanted = patient("a", "--salt", "0123456789abcdef")
    assert patient("b", "--salt-file", tmp_path / "salt") == wanted
    monkeypatch.setenv("CARDIALIGN_SALT", "0123456789abcdef")
    assert patient("c") == wanted
    assert patient("d", "--salt", "another salt of many letters") != wanted, "an option wins"
    for words, says in (
        (("--salt", "x", "--salt-file", tmp_path / "salt"), "both given"),
        (("--salt-file", tmp_path / "none"), "cannot be read"),
        (("--salt-file", os.devnull), "cannot be read"),
    ):
        answer = cardialign("shards", "build", "wfdb", "--root", tmp_path / "records", "--out", tmp_path / "e", *words)
        assert answer.code == 2 and says in answer.json["problem"]


def test_a_mistyped_salt_is_known_by_a_set_that_exists(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    write_record(tmp_path / "records" / "one", ecg_counts())
    words = ("shards", "build", "wfdb", "--root", tmp_path / "records", "--workers", 1, "--salt")
    first, plain = tmp_path / "a", tmp_path / "plain"
    assert cardialign(*words, "0123456789abcdef", "--out", first).code == 0
    assert cardialign(*words[:-1], "--out", plain).code == 0
    assert cardialign(*words, "0123456789abcdef", "--out", tmp_path / "b", "--same-salt-as", first).code == 0
    for salt, like, says in (("0123456789abcdeg", first, "with another salt"), ("0123456789abcdef", plain, "without")):
        answer = cardialign(*words, salt, "--out", tmp_path / "c", "--same-salt-as", like)
        assert answer.code == 2 and says in answer.json["problem"] and not (tmp_path / "c").exists()
    answer = cardialign(*words, "0123456789abcdef", "--out", tmp_path / "d", "--hash-keys", "--no-dates")
    record = ShardSet.open(tmp_path / "d").read_record(0)
    assert answer.code == 0 and "one" not in record.key and record.acquired is None
