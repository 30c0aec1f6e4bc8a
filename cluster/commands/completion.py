"""`cardialign completion`: the script by which a shell completes commands, options and values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from cardialign.cluster.cli.shell_words import SHELLS, script_of, words_of

PLACES = {
    "bash": "~/.local/share/bash-completion/completions/cardialign",
    "zsh": "~/.cardialign.zsh, and `source ~/.cardialign.zsh` in ~/.zshrc",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="write its output to " + "; ".join(
        f"{shell}: {place}" for shell, place in PLACES.items()
    ))  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.commands import COMMANDS, NESTED

    known = _known()
    commands = {name: words_of(_leaf(args.parser_of(name.split(" "))), known) for name in COMMANDS}
    return {"shell": args.shell, "place": PLACES[args.shell], "script": script_of(args.shell, commands, NESTED)}


def _leaf(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Of the parser of a command line the one that has the options: the only one whose command is set."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found = _leaf(each)
                if found.get_default("command") is not None:
                    return found
    return parser


def _known() -> Mapping[str, Sequence[str]]:
    """Names that commands take and their parsers do not list: shipped ones, and those of plug-ins."""
    from cardialign.data_shards.signal.codec import CODECS
    from cardialign.data_shards.sources import SOURCES
    from cardialign.pretrain.benchmarks.machines import MACHINES
    from cardialign.pretrain.choices import METHODS
    from cardialign.pretrain.config import recipe_names
    from cardialign.pretrain.evaluation.prompts import prompt_set_names

    recipes, prompts = recipe_names(), prompt_set_names()
    return {
        "source": list(SOURCES), "recipe": recipes, "recipes": recipes, "prompts": prompts, "method": list(METHODS),
        "codec": CODECS, "kind": list(MACHINES),
    }  # fmt: skip


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["script"]).splitlines()
