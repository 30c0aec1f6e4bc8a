"""No path, file or number that can be typed is a defect of ours: a sentence names it, with the way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.registry.open_encoder import open_encoder
from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.__main__ import main as plain_start

PLACES = {
    "a folder that is not there": "nowhere",
    "an empty folder": "empty/",
    "an empty file": b"",
    "a file of noise": bytes(range(256)) * 8,
    "JSON nested deep": b"[" * 3_000,
    "a link to itself": "loop",
    "a folder with a broken manifest": {"manifest.json": b"{nope", "digests.json": b"[]"},
    "a folder with an empty manifest": {"manifest.json": b"{}", "digests.json": b"{}"},
    "a device": "/dev/null",
    "a name of 300 letters": "x" * 300,
    "a name that is no UTF-8": "\udcff",
    "a NUL": "a\0b",
    "nobody's home": "~nobody-of-that-name/x",
    "nothing": "",
    "a server that is not there": "http://127.0.0.1:1/set",
}
COMMANDS = (
    "shards verify X",
    "shards inspect X",
    "shards stats X",
    "shards leakage X X",
    "text-bank stats X",
    "text-bank build X --encoder none-of-these",
    "checkpoints list X",
    "checkpoints verify X",
    "tracking sync X",
    "export X",
    "recipes X",
    "embed X --encoder X",
    "evaluate zero-shot --encoder X --shards X",
    "pretrain --recipe X --shards X --run-dir run",
    "bench data --op codec --records 4 --rounds 1 --encoder none X",
)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    what = PLACES[request.param]
    if isinstance(what, bytes):
        (tmp_path / "file").write_bytes(what)
        return "file"
    if isinstance(what, dict):
        (tmp_path / "folder").mkdir()
        for name, content in what.items():
            (tmp_path / "folder" / name).write_bytes(content)
        return "folder"
    if what == "loop":
        os.symlink("loop", "loop")
    elif what.endswith("empty/"):
        (tmp_path / "empty").mkdir()
    return what


SLOW = {"a server that is not there", "an empty file"}


@pytest.mark.parametrize(
    "place",
    [pytest.param(name, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PLACES],
    indirect=True,
)
def test_a_place_that_holds_something_else_is_named(place: str, cardialign: Callable[..., Any]) -> None:
    for command in COMMANDS:
        words = [place if word == "X" else word for word in command.split()]
        answer = cardialign(*words)
        if answer.code != 0:  # an empty recipe is one with every default, an empty folder one without checkpoints
            assert answer.code in (1, 2) and answer.json["problem"] and answer.json["remedy"], command
            assert "defect" not in answer.json["remedy"], (command, answer.json["problem"])


PATHS = (
    *(command for command in COMMANDS if command != "recipes X"),
    "shards build wfdb --root X --out set",
    "shards build wfdb --root . --out X",
    "pretrain --recipe cardialign-tiny --shards set --run-dir X",
    "cohort X --patients 2",
    "registry pull models:/a/1 X",
    "export run --out X",
    "demo --out X",
)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_of_the_shell_is_never_the_folder_where_we_are(
    empty: str, cardialign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in PATHS:
        answer = cardialign(*[empty if word == "X" else word for word in command.split()])
        assert answer.code == 2 and "names no place" in answer.json["problem"], command
    with pytest.raises(UsageError, match="the encoder is"), open_encoder(empty, "sqlite:///absent.db"):
        pytest.fail("opened")
    with pytest.raises(SystemExit) as ended:
        plain_start(["--recipe", "cardialign-tiny", "--run-dir", empty])
    assert ended.value.code == 2
    assert not any(tmp_path.iterdir())


NUMBERS = ("0", "-1", "nan", "inf", "1e400", "9" * 5000, "x", "", "1.5")
COUNTED = (
    "bench kernels --threads X",
    "bench kernels --step cardialign-demo --batch X",
    "bench data --records X",
    "bench data --rounds X",
    "bench data --index-records X",
    "bench data --distant-reports X",
    "cohort out --patients X",
    "cohort out --patients 2 --records X",
    "cohort out --patients 2 --sampling-rate X",
    "demo --patients X",
    "demo --unseen-patients X",
    "recipes list cardialign-tiny --seconds X",
    "recipes list cardialign-tiny --sampling-rate X",
    "text-bank build set --max-tokens X",
    "text-bank build set --distant X",
    "text-bank stats set --global-batch X",
    "text-bank stats set --batches X",
)


@pytest.mark.parametrize("command", COUNTED)
def test_a_number_that_counts_nothing_is_named_with_its_option(command: str, cardialign: Callable[..., Any]) -> None:
    option = command.split()[-2]
    for number in NUMBERS:
        if number == "1.5" and "recipes" in command:
            continue
        answer = cardialign(*[number if word == "X" else word for word in command.split()])
        assert answer.code == 2 and option in answer.json["problem"], number[:9]
        assert len(answer.json["problem"]) < 400


def test_a_demo_judges_its_recipe_before_it_makes_anything(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    for words in (["--recipe", "cardialign-demoo"], ["--set", "optimizer.lr=.nan"]):
        answer = cardialign("demo", "--out", tmp_path / "demo", *words)
        assert answer.code == 2 and not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["recipies", "list"], "did you mean 'recipes'?"),
        (["pretrian"], "'pretrian' (did you mean 'pretrain'?) is none of demo, doctor, "),
        (["zeroshot"], "did you mean 'evaluate zero-shot'?"),
        (["runs", "compare", "x"], "did you mean 'compare'?"),
        (["runs", "show", "x"], "did you mean 'status'?"),
        (["evaluate", "zeroshot"], "did you mean 'zero-shot'?"),
        (["registry", "prmote", "x"], "did you mean 'promote'?"),
        (["plan", "--recipe", "cardialign-tiny", "--nods", "3"], "unknown option --nods 3 (did you mean '--nodes'?)"),
        (["pretrain", "--recipe", "x", "--rundir", "y"], "unknown here: --rundir (did you mean '--run-dir'?)"),
        (["recipes", "show", "simclr-tiny", "more"], "unknown word more"),
        (["recipes", "show", "simclr-tny"], "no recipe 'simclr-tny' (did you mean 'simclr-tiny'?)"),
        (["prompts", "show", "ptb-xl-supr-v2"], "did you mean 'ptb-xl-super-v2'?"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest_one(cardialign: Any, words: list[str], told: str) -> None:
    answer = cardialign(*words)
    assert answer.code == 2 and told in answer.json["problem"]


def test_what_is_far_from_every_word_is_guessed_at_by_nobody(cardialign: Any) -> None:
    assert "did you mean" not in cardialign("frobnicate").json["problem"]
    assert "\x1b" not in cardialign("\x1b[31mred").json["problem"]
