"""Options that several commands share: the same thing has the same word and the same help everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from cardialign.data_shards.errors import UsageError

TRACKING_URI = "sqlite:///mlflow.db"
"""The MLflow store of who names none."""


def folds(text: str) -> tuple[int, ...]:
    """`1-8`, `9`, or `1-3,5` -> fold numbers."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"{text!r} is not a list of folds", "write for example 1-8 or 1,2,9")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def key_values(assignments: list[str]) -> dict[str, str]:
    """`["salt=x"]` -> {"salt": "x"}. Raises UsageError when there is no `=`."""
    pairs = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--option {assignment!r} is not KEY=VALUE", "write for example --option salt=mine")
        pairs[key.strip()] = value
    return pairs


def add_folds(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--folds", type=folds, metavar="1-8", help=help)


def add_split(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help=f"{help} (by patient hash, stable when data is added)"
    )


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri",
        default=TRACKING_URI,
        metavar="URI",
        help=f"MLflow database or server (default {TRACKING_URI})",
    )


def add_workers(parser: argparse.ArgumentParser, default: int, help: str) -> None:
    parser.add_argument("--workers", type=int, default=default, metavar="N", help=f"{help} (default {default})")


def existing_folder(path: Path, what: str, remedy: str) -> Path:
    """`path` when it is a folder. Raises UserError."""
    from cardialign.data_shards.errors import UserError

    if not path.is_dir():
        raise UserError(f"{what} {path} does not exist", remedy)
    return path
