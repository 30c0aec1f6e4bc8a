"""What `shards build` and `shards plan` ask for alike: the data set, its reader's options, and what a record becomes.

The options of the readers come from the readers themselves. One that is called like an option of the shard set
(`sampling_rate`) is spelled `--record-rate`: which of a data set's published rates to read, while `--sampling-rate` is
what the shards hold.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import add_folds, amount, key_values, place
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.secret import Secret

if TYPE_CHECKING:
    from cardialign.data_shards.sources.base import Source

FLAG_OF = {"sampling_rate": "record-rate"}
LATER = ("option", "json", "debug", "salt-file", "same-salt-as", "hash-keys", "no-dates")
"""Flags of ours that the parser gets after those of the readers."""
SALT = "CARDIALIGN_SALT"
"""Variable with the salt of patient ids; an option is seen by everybody who lists the processes of the machine."""

log = logging.getLogger(__name__)


class _ReaderOption(argparse.Action):
    """A flag that some readers take: reader -> its help."""

    def __init__(self, option_strings: list[str], dest: str, told: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        self.told = told

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, value: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, value)


class _Chosen(argparse.Action):
    """The kind of data set: a `--help` behind it is that of its reader alone."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, value)
        flags = [action for action in parser._actions if isinstance(action, _ReaderOption)]
        if any(value in flag.told for flag in flags):
            for flag in flags:
                flag.help = flag.told.get(value, argparse.SUPPRESS)


def add_source(parser: argparse.ArgumentParser) -> None:
    """The data set, and what each of its records becomes; `add_reader_options` last."""
    from cardialign.data_shards.sources import SOURCES

    parser.add_argument("source", action=_Chosen, help=f"what kind of data set: {', '.join(SOURCES)}")
    parser.add_argument("--root", type=place, required=True, help="folder of the data set")
    parser.add_argument(
        "--sampling-rate",
        type=amount,
        default=500.0,
        metavar="HZ",
        help="of the shards; records are resampled (default 500)",
    )
    parser.add_argument(
        "--seconds", type=amount, default=10.0, help="length of every record; cropped or padded at the end (default 10)"
    )
    add_folds(parser, "keep only these folds")


def _reader_options() -> dict[str, tuple[str, dict[str, str]]]:
    """Option -> help, and what each reader that takes it says of it; the help names them unless all do."""
    from cardialign.data_shards.sources import SOURCES

    merged: dict[str, dict[str, list[str]]] = {}
    readers = dict(SOURCES.importable(lambda reader: {str(key): str(text) for key, text in reader.options().items()}))
    for name, options in readers.items():
        for option, text in options.items():
            merged.setdefault(option, {}).setdefault(text, []).append(name)
    said = {}
    for option, texts in merged.items():
        told = [text if len(names) == len(readers) else f"{text} [{', '.join(names)}]" for text, names in texts.items()]
        said[option] = "; ".join(told), {name: text for text, names in texts.items() for name in names}
    return said


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """A flag per option of a reader.

    A plug-in may call an option like one of ours (`limit`): that one is left to `--option`, and the log says so.
    """
    group = parser.add_argument_group("options of the reader")
    for option, (text, readers) in _reader_options().items():
        flag = _flag(option)[2:]
        try:
            if flag in LATER or not option.isidentifier():
                raise ValueError(f"--{flag} is taken, or no word for a flag")
            group.add_argument(
                f"--{flag}",
                dest=f"reader_{option}",
                metavar="VALUE",
                help=_plain(text),
                action=_ReaderOption,
                told={name: _plain(each) for name, each in readers.items()},
            )
        except (argparse.ArgumentError, ValueError) as error:
            log.warning(
                "source=%s option=%s action=no flag of its own, write --option %s=VALUE reason=%s",
                ",".join(readers),
                option,
                option,
                error,
            )
    group.add_argument(
        "--salt-file",
        type=Path,
        metavar="FILE",
        help=f"file whose one line is the salt (else the variable {SALT}): --salt is seen in the list of processes",
    )
    group.add_argument(
        "--same-salt-as",
        type=place,
        metavar="SHARDS",
        help="a set whose patients get the same ids here: another salt, a mistyped one perhaps, is refused",
    )
    group.add_argument(
        "--hash-keys",
        action="store_true",
        help="names of records and files are hashed with the salt, for archives whose names identify patients",
    )
    group.add_argument(
        "--no-dates", action="store_true", help="leave out when a record was made, for archives whose dates identify"
    )
    group.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="the same, by the reader's own word"
    )


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _flag(option: str) -> str:
    return f"--{FLAG_OF.get(option, option).replace('_', '-')}"


@contextmanager
def in_words_of_flags(source: str) -> Iterator[None]:
    """What a reader says of its option `key_column` is said of `--key-column`, which was typed.

    Options of one word (`unit`) are words of every day and stay; so does what stands in quotes or in a path, and what a
    file has under the name of an option (`sampling_rate says 250`, the columns of a table).
    """

    def in_flags(line: logging.LogRecord) -> bool:
        if line.name.startswith("cardialign.data_shards.sources"):
            line.msg, line.args = reword(line.getMessage()), ()
        return True

    reword = _rewording(source)
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(in_flags)
    try:
        yield
    except UserError as error:
        error.reword(reword)
        raise
    finally:
        for handler in handlers:
            handler.removeFilter(in_flags)


def _rewording(source: str) -> Callable[[str], str]:
    """What makes flags of the options of a reader; of a reader that cannot be asked it leaves every word."""
    from cardialign.data_shards.sources import SOURCES

    options: list[str] = []
    with suppress(Exception):
        options = [str(each) for each in SOURCES.find(source).options() if "_" in str(each)]
    if not options:
        return str
    named = "|".join(map(re.escape, options))
    alone = rf"(?<![\w'\"/.-])({named})(?![\w'\"/.=-])"
    words = re.compile(rf"\bcolumns [^;:]*|(?:(?<=option )|(?!(?:{named}) says )){alone}")
    return lambda text: words.sub(lambda found: _flag(found[1]) if found[1] else found[0], text)


def _salt(source: str, given: Mapping[str, Any], file: Path | None) -> Secret | None:
    """The salt that is no word of the command: of the file, or the environment; None where neither is meant. Raises
    UsageError for a file without one line, and where two are given."""
    from cardialign.data_shards.sources import SOURCES, source_class

    if file is None:
        told = os.environ.get(SALT) or None
        if told is None or "salt" in given:
            return None
        reader = source_class(source)
        with SOURCES.blamed(source, "cannot be asked for its options"):
            return Secret(told) if "salt" in reader.options() else None
    if "salt" in given:
        raise UsageError("--salt and --salt-file are both given", "keep --salt-file")
    return Secret.of_file(file, "--salt-file")


def _check_salt(salt: Secret, like: Path) -> None:
    """Raises UsageError where the salt is not the one that the set `like` was built with."""
    from cardialign.data_shards.shard_set.layout import read_manifest
    from cardialign.data_shards.sources.shared.patients import salt_check

    options = read_manifest(like)["source"].get("options", {})
    if options.get("salted") and "salt_check" not in options:
        raise UsageError(f"{like} says nothing of its salt: an earlier release built it", "leave --same-salt-as out")
    if salt_check(salt) != options.get("salt_check", ""):
        was = "with another salt" if options.get("salted") else "without a salt"
        raise UsageError(f"the patient ids of {like} are hashed {was}", "look for a slip of the pen in the salt")


def _check_flags(source: str, given: Iterable[str]) -> None:
    """Raises UsageError for a flag that the reader does not take, in the words of the command line."""
    from cardialign.data_shards.sources import SOURCES, source_class

    reader = source_class(source)
    with SOURCES.blamed(source, "cannot be asked for its options"):
        known = dict(reader.options())
    for option in given:
        if option not in known:
            flags = ", ".join(map(_flag, known))
            raise UsageError(
                f"source {source!r} has no option {_flag(option)}",
                f"its options are {flags}"
                + ("; the rate of the shards is --sampling-rate" if option == "sampling_rate" else ""),
            )


def asked_source(args: argparse.Namespace, root: Path) -> Source:
    """The source that the options say, at `root`. Raises UsageError for options that the reader does not take, and
    for salts that contradict each other."""
    from cardialign.data_shards.sources import open_source

    given: dict[str, Any] = {
        name.removeprefix("reader_"): value
        for name, value in vars(args).items()
        if name.startswith("reader_") and value is not None
    }
    _check_flags(args.source, given)
    given |= key_values(args.option)
    if salt := _salt(args.source, given, args.salt_file):
        given["salt"] = salt
    if "salt" in given:
        given["salt"] = Secret.of(given["salt"])
    salt = given.get("salt", Secret(""))
    if args.same_salt_as is not None:
        _check_salt(salt, args.same_salt_as)
    source = open_source(args.source, root, **given)
    if args.hash_keys or args.no_dates:
        from cardialign.data_shards.sources.shared.pseudonyms import Pseudonyms

        return Pseudonyms(source, names=args.hash_keys, dates=args.no_dates, salt=salt)
    return source
