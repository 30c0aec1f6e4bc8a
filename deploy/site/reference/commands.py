"""The pages of commands and of exit codes, from the parsers and the table of errors."""

from __future__ import annotations

import argparse
import importlib
import re

from cardialign.cluster.commands import COMMANDS, module_of
from cardialign.cluster.runs.failure import KINDS
from cardialign.data_shards import errors
from deploy.site.reference.text import cell, first_sentence, page, table

INTRODUCTION = """`cardialign COMMAND --help` prints the same, for the version that is installed. Every command takes
`--json` (the last line of stdout is one JSON object), `--debug` and `--offline`."""
CODES = """A script tells by the code alone what to do next."""
KINDS_TOLD = """Every error that a user, a file or a machine can cause is one of these. In Python they are a
`UserError` (`cardialign.UserError`) with `problem`, `remedy` and `exit_code`; with `--json` the last line holds the
same three. The table is the one by which a run directory hands an error from a worker to the driver."""
MEANINGS = {
    "DONE": ("done", "go on"),
    "FAILED": ("what was given cannot be used or reached; the message names it and the remedy", "read it"),
    "USAGE": ("wrong words on the command line, or in a recipe; nothing was begun", "correct the words"),
    "NOT_LEARNING": ("the collapse alarm ended the run: it learns nothing", "change the settings"),
    "STOPPED": ("stopped at a committed checkpoint, as it was asked to", "the same command goes on"),
    "INTERRUPTED": ("Ctrl-C", "the same command goes on"),
    "TERMINATED": ("SIGTERM: a scheduler, `kill`", "the same command goes on"),
}


def commands() -> str:
    """The page `reference/commands.md`."""
    parts = [INTRODUCTION]
    for name, told in COMMANDS.items():
        parts += [f"## cardialign {name}", f"{told[0].upper()}{told[1:]}.", *_of(name)]
    return page("Commands: every option", *parts)


def _of(name: str) -> list[str]:
    """The arguments of one command, as tables: what must be given without an option, and the options."""
    given: list[list[str]] = []
    options: list[list[str]] = []
    for action in _leaf(name)._actions:
        if action.help == argparse.SUPPRESS:
            continue
        words = _words(action)
        (options if action.option_strings else given).append([words, _told(action)])
    tables = [table(["argument", "what"], given)] if given else []
    return [*tables, *([table(["option", "what"], options)] if options else [])]


def _leaf(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    module_of(name).add_arguments(parser)
    return parser


def _words(action: argparse.Action) -> str:
    metavar = action.metavar or (action.dest if not action.option_strings else action.dest.upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if not action.option_strings:
        return f"`{value}`"
    if action.choices is not None and action.metavar is None:
        value = "|".join(map(str, action.choices))
    longest = max(action.option_strings, key=len)
    return f"`{longest}`" if action.nargs == 0 else f"`{longest} {value}`"


def _told(action: argparse.Action) -> str:
    """The help of an option, with its default where the help does not name it."""
    text = (action.help or "").replace("%%", "%")
    text = re.sub(r"%\((\w+)\)s", lambda found: str(getattr(action, found[1])), text)
    default = action.default
    if action.required and action.option_strings:
        text += " (must be given)"
    elif isinstance(default, str | int | float) and not isinstance(default, bool) and "default" not in text:
        text += f" (default {default})" if str(default) not in ("", "==SUPPRESS==") else ""
    return cell(text.replace("<", "\\<").replace("*", "\\*"))


def exit_codes() -> str:
    """The page `reference/exit-codes.md`."""
    numbers = {name: getattr(errors, name, errors.UsageError.exit_code) for name in MEANINGS}
    rows = [[f"`{numbers[name]}`", *told] for name, told in sorted(MEANINGS.items(), key=lambda each: numbers[each[0]])]
    kinds = [
        [f"`{kind}`", f"`{cls.exit_code}`", first_sentence(cls.__doc__).replace("<", "\\<")]
        for kind, module in KINDS.items()
        for cls in [getattr(importlib.import_module(module), kind)]
    ]
    return page(
        "Exit codes",
        CODES,
        table(["code", "means", "what to do"], rows),
        "## Kinds of errors",
        KINDS_TOLD,
        table(["kind", "code", "what"], kinds),
    )
