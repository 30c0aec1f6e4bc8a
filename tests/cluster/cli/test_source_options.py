"""The options of a reader, as they are typed: in its help, and in what it refuses."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.cli.source_options import FLAG_OF, in_words_of_flags
from cardialign.cluster.main import main
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.sources import SOURCES, source_class

OF_ALL = {"--salt-file", "--same-salt-as", "--hash-keys", "--no-dates", "--option"}


def flags_of(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    """The flags under "options of the reader" of a help."""
    assert main(["shards", *words, "--help"]) == 0
    group = capsys.readouterr().out.partition("options of the reader:")[2].partition("\noutput:")[0]
    return set(re.findall(r"^  (--[a-z-]+)", group, re.MULTILINE)) - OF_ALL


@pytest.mark.parametrize("command", ["build", "plan"])
@pytest.mark.parametrize("source", SOURCES.own)
def test_the_help_behind_a_source_is_that_of_its_reader(
    capsys: pytest.CaptureFixture[str], command: str, source: str
) -> None:
    wanted = {f"--{FLAG_OF.get(option, option).replace('_', '-')}" for option in source_class(source).options()}
    assert flags_of(capsys, command, source) == wanted


def test_without_a_source_all_of_them_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    every = flags_of(capsys, "build")
    assert flags_of(capsys, "build", "nothing") == every, "a word that is no source narrows nothing"
    assert all(flags_of(capsys, "build", source) <= every for source in SOURCES.own)


def test_a_refusal_names_the_flag_that_was_typed(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "records").mkdir()
    words = ("arrays", "--root", tmp_path / "records", "--table", tmp_path / "table.csv")
    for command in (("plan", *words), ("build", *words, "--out", tmp_path / "out")):
        answer = cardialign("shards", *command)
        assert answer.code == 2 and "--key-column or --path-column" in answer.json["remedy"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("give key_column", "give --key-column"),
        ("sampling_rate is 3", "--record-rate is 3"),
        ("no column 'key_column' in /a/key_column.csv", "no column 'key_column' in /a/key_column.csv"),
        ("my_key_column, key_columns and --key-column", "my_key_column, key_columns and --key-column"),
        ("unit is 'mv'", "unit is 'mv'"),
        ("l.csv lacks the columns record, label_set; it has x", "l.csv lacks the columns record, label_set; it has x"),
        (
            "a.npz: sampling_rate says 250, the option sampling_rate says 500",
            "a.npz: sampling_rate says 250, the option --record-rate says 500",
        ),
    ],
)
def test_words_of_options_become_flags_and_the_users_own_words_stay(said: str, told: str) -> None:
    with pytest.raises(DataError) as caught, in_words_of_flags("arrays"):
        raise DataError(said, said)
    assert (caught.value.problem, caught.value.remedy) == (told, told) and str(caught.value).startswith(told)


def test_a_warning_of_a_reader_names_the_flag_too(caplog: pytest.LogCaptureFixture) -> None:
    ours, other = "cardialign.data_shards.sources.shared.cells", "cardialign.data_shards.build"
    with in_words_of_flags("wfdb"):
        for name in (ours, other):
            logging.getLogger(name).warning("%r stands there; set label_separator", "label_separator")
    logging.getLogger(ours).warning("set label_separator")
    assert caplog.messages == [
        "'label_separator' stands there; set --label-separator",
        "'label_separator' stands there; set label_separator",
        "set label_separator",
    ]


def test_a_source_that_nobody_has_is_told_as_such() -> None:
    with pytest.raises(UsageError, match=r"^key_column$"), in_words_of_flags("nothing"):
        raise UsageError("key_column")
