"""`cardialign`: reads the command line, runs one command, turns its result into lines or one JSON object, and errors into exit codes.

Nothing heavy is imported here: `cardialign --help` reads the table in `cardialign.cluster.commands` and stops.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import time
import traceback
from typing import Any, NoReturn

from cardialign.cluster.commands import COMMANDS, GROUPS
from cardialign.data_shards.errors import DONE, FAILED, INTERRUPTED, UsageError, UserError


class _Parser(argparse.ArgumentParser):
    """argparse that raises `UsageError` instead of exiting, so that `--json` and Python callers see it too."""

    def error(self, message: str) -> NoReturn:
        words = self.prog.removeprefix("cardialign").strip()
        raise UsageError(f"{words}: {message}" if words else message, f"see `{self.prog} --help`")


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


def _typed_command(argv: list[str]) -> str | None:
    """The command whose words open `argv` (flags before it skipped), or None."""
    words = [word for word in argv if not word.startswith("-")]
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return name
    return None


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command word; only `command` (None: none) gets its options, because only its module is imported."""
    parser = _Parser(
        prog="cardialign",
        description="Pretrain ECG encoders against their clinical reports, from a laptop to a cluster.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    _common(parser)
    top = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    groups: dict[str, Any] = {}
    for name, entry in COMMANDS.items():
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
            help=entry.help,
            description=entry.help[0].upper() + entry.help[1:] + ".",
            formatter_class=_Help,
        )
        if name == command:
            importlib.import_module(entry.module).add_arguments(leaf)
            _common(leaf)
            leaf.set_defaults(command=name)
    return parser


def _logging(debug: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    return str(value)


def aligned(result: dict[str, Any]) -> list[str]:
    """`key  value` lines with the values in one column; empty values are left out."""
    shown = {
        key.replace("_", " "): _value(value)
        for key, value in result.items()
        if value is not None and key != "exit_code" and key[0] != "_"
    }
    width = max((len(key) for key in shown), default=0)
    return [f"{key:<{width}}  {value}" for key, value in shown.items()]


def _plain(value: Any) -> Any:
    """What `json` does not know: paths, numpy scalars and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _finite(value: Any) -> Any:
    """NaN and infinities are not JSON: they become null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _last_line(payload: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(payload, default=_plain))
    sys.stdout.write(json.dumps(_finite(plain), allow_nan=False) + "\n")
    sys.stdout.flush()


def _report_result(command: str, result: dict[str, Any], seconds: float, as_json: bool) -> int:
    code = int(result.get("exit_code", DONE))
    if as_json:
        shown = {key: value for key, value in result.items() if not key.startswith("_")}  # `_...` is for `summary` only
        _last_line({"ok": code == DONE, "command": command, "seconds": round(seconds, 3), **shown, "exit_code": code})
        return code
    module = importlib.import_module(COMMANDS[command].module)
    lines = module.summary(result) if hasattr(module, "summary") else aligned({"seconds": round(seconds, 1), **result})
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return code


def _report_error(command: str | None, problem: str, remedy: str, code: int, as_json: bool) -> int:
    if as_json:
        _last_line({"ok": False, "command": command, "problem": problem, "remedy": remedy, "exit_code": code})
    sys.stderr.write(f"cardialign: {problem}\n" + (f"  remedy: {remedy}\n" if remedy else ""))
    return code


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (`cardialign.data_shards.errors`). Never raises for what a user can cause."""
    words = sys.argv[1:] if argv is None else list(argv)
    as_json = "--json" in words
    debug = "--debug" in words or os.environ.get("CARDIALIGN_DEBUG", "") not in ("", "0")
    command = _typed_command(words)
    _logging(debug)
    started = time.monotonic()
    try:
        args, unknown = build_parser(command).parse_known_args(words)
        if unknown:
            raise UsageError(
                f"{args.command}: unknown option {' '.join(unknown)}", f"see `cardialign {args.command} --help`"
            )
        args.json, args.debug = as_json, debug
        command = args.command
        result = importlib.import_module(COMMANDS[args.command].module).run(args)
        return _report_result(args.command, result, time.monotonic() - started, as_json)
    except UserError as error:
        if debug:
            traceback.print_exc()
        return _report_error(command, error.problem, error.remedy, error.exit_code, as_json)
    except KeyboardInterrupt:
        return _report_error(command, "interrupted", "", INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader (`| head`) has gone; nothing is left to tell it
        with contextlib.suppress(OSError):
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return FAILED
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
        return _report_error(
            command, problem, "this is a defect of ours; run again with --debug for the traceback", FAILED, as_json
        )
