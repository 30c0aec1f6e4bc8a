"""`completion`: what a real shell offers at the Tab key, from the script that the command prints."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.cluster.cli.shell_words import plain
from cardialign.cluster.commands import COMMANDS
from cardialign.data_shards.sources import SOURCES
from cardialign.pretrain.config import recipe_names
from tests.cluster.conftest import Answer

Offered = Callable[..., set[str]]
ASKED = """
{prepare}
source {script}
complete -p cardialign >&2 || exit 3
COMP_WORDS=({words}); COMP_CWORD={at}
_cardialign
for each in "${{COMPREPLY[@]}}"; do printf '%s\\n' "$each"; done
"""


@pytest.fixture
def offered(cardialign: Callable[..., Answer], tmp_path: Path) -> Offered:
    """`offered("cardialign", "shards", "")`: what bash completes the last of these words to."""
    script = tmp_path / "cardialign.bash"
    answer = cardialign("completion", "bash", plain=True)
    assert answer.code == 0
    script.write_text(answer.out)

    def ask(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        text = ASKED.format(prepare="set -eu", script=script, words=quoted, at=len(words) - 1)
        done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "-F _cardialign cardialign" in done.stderr, "bash knows whom to ask"
        return set(done.stdout.split())

    return ask


def test_every_command_of_the_table_is_offered(offered: Offered) -> None:
    first = {name.split(" ")[0] for name in COMMANDS}
    assert offered("cardialign", "") == first | {"--help", "--version"}
    assert offered("cardialign", "ex") == {"export", "exposure"}
    assert offered("cardialign", "shards", "") == {
        name.split(" ")[1] for name in COMMANDS if name.startswith("shards ")
    }
    assert offered("cardialign", "--debug", "registry", "pr") == {"promote"}


def test_options_are_those_of_the_command(offered: Offered) -> None:
    found = offered("cardialign", "pretrain", "--")
    assert {"--recipe", "--shards", "--run-dir", "--json", "--help"} <= found
    assert "--out" not in found and "--key-column" not in found
    assert offered("cardialign", "pretrain", "--recipe", "cardialign-small", "--track") == {
        "--tracking-uri",
        "--tracking-optional",
    }


def test_values_that_are_known_are_offered_and_elsewhere_files_are(offered: Offered) -> None:
    assert offered("cardialign", "pretrain", "--recipe", "") == set(recipe_names())
    assert offered("cardialign", "pretrain", "--recipe=cardialign-sm") == {"--recipe=cardialign-small"}
    assert offered("cardialign", "shards", "build", "wfdb", "--codec", "") == {"einthoven", "npy"}
    assert offered("cardialign", "plan", "--kind", "H") == {"H100", "H200"}
    assert offered("cardialign", "pretrain", "--recipe", "=", "cardialign-sm") == {"cardialign-small"}, (
        "as bash cuts it"
    )
    assert offered("cardialign", "prompts", "show", "ptb-xl-super-v") == {"ptb-xl-super-v1", "ptb-xl-super-v2"}
    assert offered("cardialign", "evaluate", "zero-shot", "--prompts", "virtual") == {
        "virtual-findings-v1",
        "virtual-findings-v2",
    }
    assert offered("cardialign", "pretrain", "--run-dir", "") == set(), "bash then offers files"


def test_a_reader_has_its_own_options_and_no_others(offered: Offered) -> None:
    assert offered("cardialign", "shards", "build", "") == set(SOURCES)
    every, own = (
        offered("cardialign", "shards", "build", "--"),
        offered("cardialign", "shards", "build", "ptb-xl", "--"),
    )
    assert {"--root", "--out", "--record-rate"} <= own < every
    assert "--key-column" in every and "--key-column" not in own


def test_behind_submit_it_is_the_other_command_that_counts(offered: Offered) -> None:
    assert "--recipe" in offered("cardialign", "submit", "--name", "a", "--", "pretrain", "--rec")


def test_a_word_that_a_shell_would_run_is_not_offered() -> None:
    assert plain(["a b", "$(touch x)", "`x`", "a;b", "cardialign-small", "x'y", ""]) == ["cardialign-small"]


ZSH = os.environ.get("CARDIALIGN_ZSH") or shutil.which("zsh")
"""CARDIALIGN_ZSH names one that is not on the path."""


@pytest.mark.skipif(ZSH is None, reason="no zsh on this machine")
def test_zsh_takes_the_script_and_offers_the_same(
    cardialign: Callable[..., Answer], offered: Offered, tmp_path: Path
) -> None:
    script = tmp_path / "cardialign.zsh"
    script.write_text(cardialign("completion", "zsh", plain=True).out)
    for words in (("shards", ""), ("pretrain", "--recipe", "cardialign-"), ("shards", "build", "ptb-xl", "--re")):
        quoted = " ".join(f"'{word}'" for word in ("cardialign", *words))
        asked = (  # as `_bash_complete` of zsh asks
            f"source {script}; print -- $_comps[cardialign] >&2; words=({quoted}); CURRENT={len(words) + 1}; "
            'COMP_WORDS=("${words[@]}"); COMP_CWORD=$((CURRENT - 1)); compgen -F _cardialign -- "${words[CURRENT]}"'
        )
        done = subprocess.run([str(ZSH), "-f", "-c", asked], capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = {word for word in done.stdout.split() if word.startswith(words[-1])}  # as zsh then chooses itself
        assert "_bash_complete" in done.stderr and found == offered("cardialign", *words)
