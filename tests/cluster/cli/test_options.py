"""Options that several commands share: what they take, and one sentence, naming the option, for what they do not."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.cli.options import (
    HIGHEST_FOLD,
    array_to_write,
    folds,
    json_to_write,
    page_to_write,
    picture_to_write,
)
from cardialign.cluster.commands.pretrain import overrides
from cardialign.cluster.main import build_parser, main
from cardialign.data_shards.errors import UsageError

BUILD = ("shards build", "mimic-iv-ecg", "--root", "r", "--out", "o")
SCORE = ("evaluate zero-shot", "--encoder", "e", "--shards", "s", "--prompts", "p")
MISSING = ("evaluate cmrs", "--encoder", "e", "--shards", "s", "--prompts", "p")
MASKER = ("evaluate masker", "r", "--shards", "s", "--prompts", "p")
TRAIN = ("pretrain", "--recipe", "scar", "--run-dir", "r")
EMBED = ("embed", "ecg.npy", "--encoder", "e")


def parsed(command: str, *words: object) -> argparse.Namespace:
    return build_parser(command).parse_args([*command.split(), *map(str, words)])


@pytest.mark.parametrize(
    ("option", "commands"),
    [
        ("--batch-size", ("zero-shot", "cmrs", "missingness")),
        ("--allow-trained", ("zero-shot", "cmrs", "missingness", "linear-probe", "grid", "explain-gap")),
        ("--bootstrap", ("zero-shot", "cmrs", "missingness", "linear-probe", "fine-tune", "masker", "explain-gap")),
        ("--label-files", ("zero-shot", "missingness", "linear-probe", "grid", "select", "explain-gap")),
        ("--records", ("cmrs", "missingness", "masker")),
        ("--seeds", ("cmrs", "missingness")),
        ("--beside", ("cmrs", "missingness")),
    ],
)
def test_an_option_of_evaluations_is_the_same_in_every_one(option: str, commands: tuple[str, ...]) -> None:
    told = set()
    for command in commands:
        page = re.sub(r"\s+", " ", options_of(build_parser(f"evaluate {command}")))
        told.add(re.sub(r" --[a-z].*", "", page.partition(f" {option} ")[2]))
    assert len(told) == 1 and "" not in told


def options_of(parser: argparse.ArgumentParser) -> str:
    """The help of the one command that got its options; the others say theirs in a line."""
    places = [parser]
    for _ in ("evaluate", "its commands"):
        inner = [action for each in places for action in each._actions]
        places = [
            p for action in inner if isinstance(action, argparse._SubParsersAction) for p in action.choices.values()
        ]
    return max((each.format_help() for each in places), key=len).partition("options:")[2]


def test_folds_are_numbers_and_ranges() -> None:
    assert folds("1-3,5, 9") == (1, 2, 3, 5, 9) and folds("8-8") == (8,) and folds("0") == (0,)
    assert len(folds(f"1-{HIGHEST_FOLD}")) == HIGHEST_FOLD


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1-999999999", "argument --folds: '1-999999999' goes beyond fold 10000; write for example 1-8 or 1,2,9"),
        ("9" * 5000, "goes beyond fold 10000"),
        ("8-1", "argument --folds: '8-1' runs backwards; write 1-8"),
        ("all", "argument --folds: 'all' is not a list of folds; write for example 1-8 or 1,2,9"),
        ("1-", "'1-' is not a list of folds"),
        ("1-2-3", "'1-2-3' is not a list of folds"),
        ("²", "'²' is not a list of folds"),
        ("", "'' is not a list of folds"),
    ],
)
def test_other_folds_are_refused_with_the_way_out(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*BUILD, "--folds", text)
    assert sentence in caught.value.problem and len(caught.value.problem) < 200


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-5", "1e300", "ten"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("recipes list",), "--sampling-rate"),
        (("recipes list",), "--seconds"),
        (BUILD, "--sampling-rate"),
        (BUILD, "--seconds"),
        (EMBED, "--sampling-rate"),
    ],
)
def test_amounts_are_finite_and_above_zero(words: tuple[str, ...], option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"argument {option}: '{value}' is not a number above 0 and up to 1,000,000"):
        parsed(*words, f"{option}={value}")
    assert getattr(parsed(*words, option, "12.5"), option[2:].replace("-", "_")) == 12.5


@pytest.mark.parametrize("value", ["0", "1", "nan", "half"])
@pytest.mark.parametrize("words", [MISSING, MASKER])
def test_shares_are_neither_nothing_nor_all(words: tuple[str, ...], value: str) -> None:
    with pytest.raises(UsageError, match=f"argument --share: '{value}' is not a share between 0 and 1"):
        parsed(*words, f"--share={value}")
    assert parsed(*words, "--share", "0.25").share == 0.25


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", "5", "--epochs", "2"), "--steps 5 and --epochs 2 both"),
        (("--steps", "5", "--set", "training.epochs=3"), "--steps 5 and --set training.epochs=3 both"),
        (("--epochs", "2", "--set", "training.steps=30"), "--set training.steps=30 and --epochs 2 both"),
        (
            ("--set", "training.steps=30", "--set", "training.epochs=3"),
            "--set training.steps=30 and --set training.epochs=3",
        ),
    ],
)
def test_two_lengths_of_a_training_are_named_as_they_were_typed(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        overrides(parsed(*TRAIN, *words))
    assert sentence in caught.value.problem and caught.value.remedy == "give one of the two"


def test_one_length_replaces_the_recipe_s() -> None:
    assert overrides(parsed(*TRAIN, "--steps", "5")) == ["training.epochs=null", "training.steps=5"]
    said = overrides(parsed(*TRAIN, "--steps", "5", "--set", "training.epochs=null"))
    assert said == ["training.epochs=null", "training.steps=5", "training.epochs=null"]


@pytest.mark.parametrize(
    ("words", "option", "least"),
    [
        (BUILD, "--records-per-shard", 1),
        (BUILD, "--limit", 1),
        (BUILD, "--workers", 0),
        (SCORE, "--bootstrap", 0),
        (SCORE, "--seed", 0),
        (SCORE, "--batch-size", 1),
        (("shards leakage", "a", "b"), "--threads", 1),
        (("text-bank stats", "s"), "--max-tokens", 8),
    ],
)
def test_counts_are_whole_numbers_from_their_least(words: tuple[str, ...], option: str, least: int) -> None:
    assert getattr(parsed(*words, option, least), option[2:].replace("-", "_")) == least
    for value in (least - 1, "1.5", "nan", "many"):
        with pytest.raises(UsageError, match=f"argument {option}: '{value}' is not a whole number "):
            parsed(*words, f"{option}={value}")


def test_a_seed_is_what_the_generators_take() -> None:
    assert parsed(*SCORE, "--seed", 2**64 - 1).seed == 2**64 - 1
    with pytest.raises(UsageError, match=f"is not a whole number from 0 to {2**64 - 1}"):
        parsed(*SCORE, "--seed", 2**64)


@pytest.mark.parametrize("words", [SCORE, ("shards inspect", "s", "--row", "0"), ("shards stats", "s")])
def test_one_file_is_no_folder(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"argument --out: {tmp_path} is a folder; name a file in it"):
        parsed(*words, "--out", tmp_path)
    name = {"shards inspect": "new.png", "shards stats": "new.html"}.get(words[0], "new.json")
    assert parsed(*words, "--out", tmp_path / name).out == tmp_path / name


def test_the_command_answers_in_one_sentence(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("recipes", "list", "--seconds", "inf")
    assert answer.code == 2 and answer.json["problem"].startswith(
        "recipes list: argument --seconds: 'inf' is not a number"
    )


PLACES = [
    ("export", "RUN"),
    ("export", "run", "--out"),
    ("pretrain", "--recipe", "r", "--run-dir"),
    ("pretrain", "--recipe", "r", "--run-dir", "d", "--shards"),
    ("registry pull", "name", "OUT"),
    ("shards build", "wfdb", "--out", "o", "--root"),
    ("shards build", "wfdb", "--root", "r", "--out"),
    ("shards verify", "SET"),
    ("cohort", "--patients", "3", "OUT"),
    ("tracking sync", "RUN"),
    ("checkpoints list", "RUN"),
    (*EMBED, "--out"),
]


def given(words: tuple[str, ...], value: str) -> argparse.Namespace:
    """The command with `value` as its place: behind its last option, or in the place of the word in capitals."""
    *before, last = words
    return parsed(*before, f"{last}={value}") if last.startswith("--") else parsed(*before, value)


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_place_is_not_taken_for_the_working_folder(words: tuple[str, ...], value: str) -> None:
    """`--run-dir "$RUN"` with a variable that is not set."""
    with pytest.raises(UsageError, match="names no place; is the variable set"):
        given(words, value)


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
def test_a_tilde_that_the_shell_has_left_is_the_home_folder(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out=~/x` would make a folder that is called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [value for value in vars(given(words, "~/x")).values() if isinstance(value, Path)]
    assert tmp_path / "x" in found and not any("~" in str(path) for path in found)


def test_urls_and_names_with_a_tilde_stay(tmp_path: Path) -> None:
    assert str(parsed("shards verify", "s3://bucket/~set").shards) == "s3:/bucket/~set"  # `url_of` mends it
    assert parsed("export", "run", "--out", "~backup").out == Path("~backup")


@pytest.mark.parametrize(
    "words", [("export", "run", "--out"), ("pretrain", "--recipe", "r", "--run-dir"), ("cohort", "O")]
)
def test_a_new_folder_has_a_name_in_utf8(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is no UTF-8 text"):
        given(words, "caf\udce9")
    assert parsed("shards verify", "caf\udce9").shards == Path("caf\udce9"), "what is there may be read"


def test_a_link_to_nothing_is_no_place_for_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    with pytest.raises(UsageError, match=r"link is a link to .*unplugged, which is not there"):
        given(("export", "run", "--out"), str(tmp_path / "link"))
    (tmp_path / "unplugged").mkdir()
    assert parsed("export", "run", "--out", str(tmp_path / "link")).out == tmp_path / "link"


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (json_to_write, "a.json", "a.csv"),
        (page_to_write, "a.HTM", "a.pdf"),
        (array_to_write, "a.npy", "a.csv"),
        (picture_to_write, "a.png", "a.jpg"),
    ],
)
def test_an_ending_that_says_what_a_file_is_not_is_refused(kind: Callable, right: str, wrong: str) -> None:
    assert kind(right) == Path(right) and kind("a") == Path("a")
    with pytest.raises(argparse.ArgumentTypeError, match=rf"'{wrong}' does not end in \.\w+, and .* will be in it"):
        kind(wrong)


@pytest.mark.parametrize(("command", "out"), [("shards stats", "a.pdf"), ("embed", "a.csv"), ("search", "a.txt")])
def test_commands_ask_for_the_ending_of_what_they_write(
    command: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "x", "--out", out]) == 2 and f"'{out}' does not end in" in capsys.readouterr().err
