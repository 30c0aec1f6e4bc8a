"""`cardialign`: reads the command line, runs one command, prints its result, and turns errors into exit codes.

Nothing heavy is imported here: `cardialign --help` reads the table in `cardialign.cluster.commands` and stops.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cardialign.cluster.cli.causes import cause_of
from cardialign.cluster.cli.interrupts import Interrupts
from cardialign.cluster.cli.lines import aligned, json_line
from cardialign.cluster.cli.options import place
from cardialign.cluster.cli.streams import leave_stdout, open_streams, say, tell
from cardialign.cluster.cli.tables import say_result
from cardialign.cluster.commands import COMMANDS, GROUPS, NESTED, module_of
from cardialign.cluster.environment.handed_on import adopt_submitted
from cardialign.cluster.environment.put_off import put_off
from cardialign.data_shards.errors import DONE, FAILED, UsageError, UserError
from cardialign.data_shards.offline import SWITCH, stay_offline
from cardialign.data_shards.plugins import did_you_mean
from cardialign.data_shards.rights import closed_to_others
from cardialign.data_shards.shown import shown


class _Parser(argparse.ArgumentParser):
    """argparse that raises `UsageError` instead of exiting, so that `--json` and Python callers see it too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, place)  # what `type=Path` means for every option of every command
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        words = self.prog.removeprefix("cardialign").strip()
        unknown = self.unknown_options(self._given) if "are required" in message else ""
        more = f"; unknown here: {unknown}" if unknown else ""
        raise UsageError(f"{words}: {message}{more}" if words else f"{message}{more}", f"see `{self.prog} --help`")

    def unknown_options(self, given: Sequence[str]) -> str:
        """The options among `given` that this command has not, each with the nearest of those that it has."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        typed = dict.fromkeys(word.partition("=")[0] for word in given if word.startswith("--") and word != "--")
        wrong = [word for word in typed if not any(option.startswith(word) for option in known)]
        return " ".join(shown(word) + did_you_mean(word, known) for word in wrong)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Whether an argument is one of its choices; else the nearest of them, or of all commands, which stands before
        the list: that may be long."""
        if action.choices is None or value in action.choices:
            return
        known = list(map(str, action.choices))
        near = did_you_mean(str(value), known)
        if not near and action.metavar == "COMMAND":
            near = _elsewhere(self.prog.removeprefix("cardialign").strip(), str(value).casefold())
        raise argparse.ArgumentError(action, f"{shown(str(value))!r}{near} is none of {', '.join(known)}")


OF_OTHERS = {"runs show": "status", "runs status": "status"}
"""What other tools call a command of ours."""


def _elsewhere(group: str, word: str) -> str:
    """Where else a word is a command: on its own (`runs compare`), by another name, or nearly in another group."""
    found = OF_OTHERS.get(f"{group} {word}") or (word if word in COMMANDS else "")
    if not found:
        within = {name.partition(" ")[2]: name for name in COMMANDS if " " in name}
        found = "".join(within[each] for each in difflib.get_close_matches(word, within, n=1))
    return f" (did you mean {found!r}?)" if found else ""


class _Help(argparse.HelpFormatter):
    """Option words in one column, wide enough for ours."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class _Version(argparse.Action):
    """Prints the version without importing the packages it names."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help=kwargs.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from cardialign.cluster.environment.versions import version

        sys.stdout.write(f"cardialign {version('cardialign')}\n")
        parser.exit()


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="last line of stdout is one JSON object"
    )
    group.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log decisions, show tracebacks (or CARDIALIGN_DEBUG=1)",
    )
    group.add_argument(
        "--offline",
        action="store_true",
        default=argparse.SUPPRESS,
        help="connect to nothing beyond this machine (or CARDIALIGN_OFFLINE=1); hosts of your own cluster: "
        "CARDIALIGN_OFFLINE_HOSTS",
    )


def _typed_command(argv: list[str]) -> str | None:
    """The command whose words open `argv` (flags before it skipped), or None."""
    words = [word for word in argv if not word.startswith("-")]
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return name
    return None


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command word.

    Only `command` (None: none) gets its options, because only its module is imported.
    """
    parser = _Parser(
        prog="cardialign",
        description="Pretrain ECG encoders against their clinical reports, from a laptop to a cluster.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    _common(parser)
    top = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    groups: dict[str, Any] = {}
    for name, told in COMMANDS.items():
        first, _, second = name.partition(" ")
        where = top
        if second:
            if first not in groups:
                group = top.add_parser(
                    first, help=GROUPS[first], description=GROUPS[first].capitalize() + ".", formatter_class=_Help
                )
                groups[first] = group.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
            where = groups[first]
        leaf = where.add_parser(
            second or first,
            help=told.replace("%", "%%"),  # argparse fills in what stands behind a percent sign
            description=told[0].upper() + told[1:] + ".",
            formatter_class=_Help,
        )
        if name == command:
            module_of(name).add_arguments(leaf)
            _common(leaf)
            leaf.set_defaults(command=name)
    return parser


def _tell_result(command: str, result: dict[str, Any], seconds: float, as_json: bool) -> int:
    code = int(result.get("exit_code", DONE))
    if as_json:
        shown = {key: value for key, value in result.items() if not key.startswith("_")}  # `_...` is for `summary` only
        payload = {"ok": code == DONE, "command": command, "seconds": round(seconds, 3), **shown, "exit_code": code}
        say([json_line(payload)])
        return code
    module = module_of(command)
    lines = module.summary(result) if hasattr(module, "summary") else aligned({"seconds": round(seconds, 1), **result})
    say_result(lines)
    return code


def _tell_error(command: str | None, problem: str, remedy: str, code: int, as_json: bool) -> int:
    if as_json:
        payload = {"ok": False, "command": command, "problem": problem, "remedy": remedy, "exit_code": code}
        try:
            say([json_line(payload)])
        except OSError:
            leave_stdout()
    tell(f"cardialign: {problem}\n" + (f"  remedy: {remedy}\n" if remedy else ""))
    return code


def _check_working_folder() -> None:
    """Raises UsageError when it was deleted: PyTorch's mathematics would end the process with words of its own."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working folder of this command cannot be found: {error.strerror}",
            "change to a folder that is there (`cd`), then run the same command again",
        ) from None


def _behind(words: list[str]) -> tuple[list[str], list[str]]:
    """(the words of this command, those of the other command behind `--` that it takes)."""
    command = _typed_command(words)
    if command not in NESTED or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _near_options(command: str, unknown: list[str]) -> str:
    """The nearest option of a command to the first that it does not know; empty when none is near."""
    leaf = _Parser()
    module_of(command).add_arguments(leaf)
    known = [option for option in leaf._option_string_actions if option.startswith("--")]
    return did_you_mean(unknown[0].partition("=")[0], known) if unknown[0].startswith("--") else ""


def _instead_of(command: str, unknown: list[str]) -> str:
    """What to do about words that a command does not know."""
    if command in NESTED and _typed_command(unknown) is not None:
        return f"write the command that the cluster shall run behind --: cardialign {command} ... -- {unknown[0]} ..."
    return f"see `cardialign {command} --help`"


def _parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command that `words` begin with. Raises UsageError for one that is not known."""
    return build_parser(_typed_command(list(words)))


@contextlib.contextmanager
def _rarely_collecting() -> Iterator[None]:
    """Garbage in circles is looked for after 100 000 new objects, not 700: a command's imports make few such circles,
    and looking through them again and again takes a sixth of the time of importing Ray, MLflow and torch."""
    before = gc.get_threshold()
    if before[0]:  # 0: whoever calls us has switched it off
        gc.set_threshold(max(before[0], 100_000), before[1], before[2])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (`cardialign.data_shards.errors`).

    Never raises for what a user can cause. What it writes is closed to other users.
    """
    put_off()
    with closed_to_others(), _rarely_collecting(), Interrupts().listening() as interrupts:
        return _main(sys.argv[1:] if argv is None else list(argv), interrupts)


def _main(words: list[str], interrupts: Interrupts) -> int:
    words, behind = _behind(words)
    as_json = "--json" in words
    debug = "--debug" in words or os.environ.get("CARDIALIGN_DEBUG", "") not in ("", "0")
    command = _typed_command(words)
    open_streams(logging.INFO if debug else logging.WARNING)
    started = time.monotonic()
    try:
        if any("\0" in word for word in (*words, *behind)):
            raise UsageError("an argument holds a NUL character", "leave it out: no path and no name has one")
        _check_working_folder()
        adopt_submitted()
        if "--offline" in words:
            os.environ[SWITCH] = "1"  # which workers and processes of ours inherit
        stay_offline()
        args, unknown = build_parser(command).parse_known_args(words)
        if unknown:
            told = shown(" ".join(unknown))
            near = _near_options(args.command, unknown)
            kind = "option" if unknown[0].startswith("-") else "word"
            raise UsageError(f"{args.command}: unknown {kind} {told}{near}", _instead_of(args.command, unknown))
        if getattr(args, "offline", False):  # written short, too: --offl
            os.environ[SWITCH] = "1"
            stay_offline()
        args.json, args.debug = as_json, debug
        args.behind, args.parser_of = behind, _parser_of
        command = args.command
        result = module_of(args.command).run(args)
        return _tell_result(args.command, result, time.monotonic() - started, as_json)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return _ended(error, command, interrupts, as_json, debug)


def _ended(error: BaseException, command: str | None, interrupts: Interrupts, as_json: bool, debug: bool) -> int:
    """Tell what ended the command, and its exit code. What comes after a signal comes from the signal."""
    if debug and not isinstance(error, KeyboardInterrupt | SystemExit | BrokenPipeError):
        tell(traceback.format_exc())
    if interrupts.signal is not None or isinstance(error, KeyboardInterrupt):
        problem, code = interrupts.told
        return _tell_error(command, problem, "", code, as_json)
    if isinstance(error, UserError):
        return _tell_error(command, error.problem, error.remedy, error.exit_code, as_json)
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has gone; nothing is left to tell it
        leave_stdout()
        return FAILED
    if isinstance(error, SystemExit):  # --help and --version
        try:
            sys.stdout.flush()
        except OSError:
            leave_stdout()
        return int(error.code or 0)
    problem, remedy = cause_of(error, command) or (
        f"{type(error).__name__}: {error}",
        "this is a defect of ours; run again with --debug for the traceback",
    )
    return _tell_error(command, problem, remedy, FAILED, as_json)
