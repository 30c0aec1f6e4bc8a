"""Options that several commands share: the same thing has the same word and the same help everywhere."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.address import TRACKING_URI, default_uri
from cardialign.cluster.environment.sizes import Sizes, sizes
from cardialign.data_shards.errors import UsageError

DEVICES = ("auto", "cpu", "gpu")
PROMPT_WORDS = ("prompts", "names", "names-in-leads")
SPREADS = ("default", "pack", "strict")
WAIT_MINUTES = 30.0
"""A collective of torch gives up after as long."""
GROW_MINUTES = 2.0
"""How long a worker group lives at least before it is ended for a larger one: a node that comes and goes must not
restart the run each time."""
HANG_MINUTES, LEAST_HANG, MOST_HANG = 10.0, 0.1, 10_000.0
"""How long no rank may move before the group counts as hung: far longer than a step, a compilation, a checkpoint."""
LOCAL = "127.0.0.1"
"""Where a server of ours listens unless it is told otherwise."""
HIGHEST_FOLD = 10_000
HIGHEST_CPUS = 100_000
HIGHEST_AMOUNT = 1e6
"""Of seconds and of Hz: far beyond every ECG, and small enough to be counted in samples."""


def folds(text: str) -> tuple[int, ...]:
    """`1-8`, `9`, or `1-3,5` -> fold numbers."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ArgumentTypeError(f"{_short(text)} is not a list of folds; write for example 1-8 or 1,2,9")
        if any(len(end) > 5 or int(end) > HIGHEST_FOLD for end in ends):
            raise ArgumentTypeError(f"{_short(part)} goes beyond fold {HIGHEST_FOLD}; write for example 1-8 or 1,2,9")
        first, last = int(ends[0]), int(ends[-1])
        if first > last:
            raise ArgumentTypeError(f"{_short(part)} runs backwards; write {last}-{first}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The `type=` of an option that counts: a whole number from `least` to `most`, both included."""
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise ArgumentTypeError(f"{_short(text)} is not a whole number {limits}")
        return number

    return read


def amount(text: str) -> float:
    """The `type=` of an option in seconds, minutes or Hz: a number above 0, not too large to be counted in samples."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= HIGHEST_AMOUNT:  # refuses nan too
        raise ArgumentTypeError(f"{_short(text)} is not a number above 0 and up to {HIGHEST_AMOUNT:,.0f}")
    return number


def part(text: str) -> float:
    """The `type=` of an option that is a share of something: a number between 0 and 1, neither nothing nor all."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:  # refuses nan too
        raise ArgumentTypeError(f"{_short(text)} is not a share between 0 and 1; write for example 0.5 for a half")
    return number


def number_of_cpus(text: str) -> float:
    """The `type=` of an option in CPUs: 0 or more, whole or not."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= HIGHEST_CPUS:
        raise ArgumentTypeError(f"{_short(text)} is not a number of CPUs; write for example 2")
    return number


def size_in_bytes(text: str) -> int:
    """The `type=` of an option in bytes: `8GiB`, `500MB`, `1000000`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?)b?|b?)\s*", text, re.IGNORECASE)
    if found is None or len(found[1]) > 15:
        raise ArgumentTypeError(f"{_short(text)} is not an amount of memory; write for example 8GiB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** (1 + "kmgt".index(found[2].lower()) if found[2] else 0))


def place(text: str) -> Path:
    """The `type=` of what names a file, a folder or the URL of a shard set.

    `~/` is the home folder: a shell writes it out in `--out ~/x`, and leaves it as it is in `--out=~/x`.
    """
    if not text.strip():
        raise ArgumentTypeError(f"{text!r} names no place; is the variable set that it was made of?")
    return Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)


def place_to_write(text: str) -> Path:
    """The `type=` of what names a new file or folder: a `place` in UTF-8, as what is written there wants it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{ascii(text)[:80]} is no UTF-8 text; give it another name") from None
    path = place(text)
    with contextlib.suppress(OSError, ValueError):  # what is wrong with such a path is told when it is written
        if path.is_symlink() and not path.exists():
            raise ArgumentTypeError(
                f"{text} is a link to {path.readlink()}, which is not there; make it, or name another"
            )
    return path


def file_to_write(text: str) -> Path:
    """The `type=` of an option that names one file: a `place_to_write` that is no folder."""
    path = place_to_write(text)
    with contextlib.suppress(OSError, ValueError):  # what is wrong with such a path is told when it is written
        if path.is_dir():
            raise ArgumentTypeError(f"{text} is a folder; name a file in it")
    return path


def picture_to_write(text: str) -> Path:
    """A `file_to_write` that will be a PNG: another ending would say of it what it is not."""
    return _only(file_to_write(text), "a PNG", ".png")


def drawing_to_write(text: str) -> Path:
    """A `file_to_write` whose ending says what it will be: PNG, SVG or PDF; without an ending a PNG."""
    path = file_to_write(text)
    if path.suffix.lower() not in ("", ".png", ".svg", ".pdf"):
        raise ArgumentTypeError(f"{_short(path.name)} does not end in .png, .svg or .pdf; name it so")
    return path


def json_to_write(text: str) -> Path:
    """A `file_to_write` that will be JSON."""
    return _only(file_to_write(text), "JSON", ".json")


def page_to_write(text: str) -> Path:
    """A `file_to_write` that will be a page of HTML."""
    return _only(file_to_write(text), "a page", ".html", ".htm")


def array_to_write(text: str) -> Path:
    """A `file_to_write` that will be an array of NumPy."""
    return _only(file_to_write(text), "an array of NumPy", ".npy")


def _only(path: Path, what: str, *endings: str) -> Path:
    """Raises ArgumentTypeError for an ending that says of the file what it is not; a name without one is let be."""
    if path.suffix.lower() not in ("", *endings):
        told = f"{_short(path.name)} does not end in {endings[0]}, and {what} will be in it; name it {endings[0]}"
        raise ArgumentTypeError(told)
    return path


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def key_values(assignments: list[str]) -> dict[str, str]:
    """`["salt=x"]` -> {"salt": "x"}. Raises UsageError when there is no `=`."""
    pairs = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--option {assignment!r} is not KEY=VALUE", "write for example --option salt=mine")
        pairs[key.strip()] = value
    return pairs


def add_folds(parser: argparse._ActionsContainer, help: str) -> None:
    parser.add_argument("--folds", type=folds, metavar="1-8", help=help)


def add_split(parser: argparse._ActionsContainer, help: str) -> None:
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help=f"{help} (by patient hash, stable when data is added)"
    )


def add_prompt_words(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--words",
        choices=PROMPT_WORDS,
        default=PROMPT_WORDS[0],
        help="what stands for a class: its prompts (default), its name alone, or its name and its name in each of the "
        'twelve leads ("in lead V1"), of which the one that fits best counts',
    )


def add_other_encoders(parser: argparse._ActionsContainer) -> None:
    """The same recipe again, and what it is compared with."""
    parser.add_argument("--seeds", nargs="+", default=[], metavar="ENCODER", help="the same recipe of other seeds")
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="ENCODER", help="another encoder, of one seed or several: paired"
    )


def add_drawn_records(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--records", type=whole_number(1), default=500, metavar="N", help="at most so many, drawn (default 500)"
    )


def add_label_files(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--label-files", type=place, metavar="DIR", help="folder of a protocol's published label files")


def add_bootstrap(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--bootstrap", type=whole_number(0), default=1000, metavar="N",
        help="resamples by patient for the 95 %% intervals (default 1000; 0 or 1: no intervals)",
    )  # fmt: skip


def add_draw_seed(parser: argparse._ActionsContainer, of: str = "of all draws") -> None:
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0, help=f"{of} (default 0)")


def add_batch_size(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--batch-size", type=whole_number(1), default=64, metavar="N", help="default 64")


def add_allow_trained(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--allow-trained",
        action="store_true",
        help="score patients and recordings that the encoder was trained on, too, and say so with the figures",
    )


def add_pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooling",
        choices=("cls", "mean", "last"),
        help="of the report encoder, where its files do not say it (text.pooling)",
    )


def add_encoder(parser: argparse.ArgumentParser, name: str = "--encoder", none: str = "", **more: Any) -> None:
    """`--encoder`, or the place of it, in every form there is, and what of it is trusted. none: when the option may be
    left out; of a place what else it may name. more: as of `add_argument`."""
    given: dict[str, Any] = {"required": not none, **more} if name.startswith("--") else more
    parser.add_argument(
        name,
        help=(none and f"{none}; ") + "exported folder, or models:/NAME@ALIAS; from outside: a TorchScript file (.pt), "
        "an ONNX file, a Hugging Face folder, each with NAME.contract.yaml beside it (what it was trained on; nothing "
        "is guessed), or outside:NAME of an installed plug-in. TorchScript, ONNX and safetensors run no Python; "
        "a pickle is never loaded; TorchScript is a program of torch's operators, from people you trust; a plug-in is "
        "trusted because it was installed",
        **given,
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that a Hugging Face folder brings, with all your rights; without it such a folder is "
        "refused",
    )


def add_tracking_uri(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--tracking-uri",
        default=default_uri(),
        metavar="URI",
        help=f"MLflow database or server, with a user as https://USER:PASSWORD@HOST "
        f"(default: MLFLOW_TRACKING_URI, else {TRACKING_URI})",
    )


def add_workers(parser: argparse.ArgumentParser, default: int, help: str) -> None:
    parser.add_argument(
        "--workers", type=whole_number(0, 100_000), default=default, metavar="N", help=f"{help} (default {default})"
    )


def add_sizes(parser: argparse.ArgumentParser, default: int, help: str) -> None:
    parser.add_argument(
        "--workers", type=sizes, default=Sizes(default, default), metavar="N|MIN-MAX",
        help=f"{help} (default {default})",
    )  # fmt: skip


def add_placement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=DEVICES[0],
        help="where the workers go; auto: on GPUs where the cluster has any (then one for each worker is needed)",
    )
    parser.add_argument(
        "--wait-minutes",
        type=amount,
        default=WAIT_MINUTES,
        metavar="MINUTES",
        help="how long the run may stand still, for resources, a node or a rank, before it ends "
        f"(default {WAIT_MINUTES:g})",
    )
    parser.add_argument(
        "--grow-minutes",
        type=amount,
        default=GROW_MINUTES,
        metavar="MINUTES",
        help="with MIN-MAX: how long a group of workers lives at least before it stops, at a checkpoint, for a larger "
        f"one (default {GROW_MINUTES:g})",
    )
    parser.add_argument(
        "--hang-minutes",
        type=amount,
        default=HANG_MINUTES,
        metavar="MINUTES",
        help="how long no worker may move on (twice as long before the first step) until the group counts as hung: its "
        "stacks are kept and the run goes on from the last checkpoint, which counts to --max-failures; a step of yours "
        f"must be shorter (default {HANG_MINUTES:g})",
    )
    where = parser.add_argument_group("nodes")
    where.add_argument("--gpu-kind", metavar="H100", help="only GPUs of this kind (H100, H200, A100, L40S, ...)")
    where.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="only nodes with this label, repeatable"
    )
    where.add_argument(
        "--resource", action="append", default=[], metavar="NAME=AMOUNT",
        help="of each worker, a resource that the nodes declare; repeatable",
    )  # fmt: skip
    where.add_argument(
        "--cpus-per-worker", type=whole_number(1, 10_000), metavar="N", help="kept for each worker, and its threads (1)"
    )
    where.add_argument(
        "--spread", choices=SPREADS, default=SPREADS[0],
        help="strict: a node for each worker; pack: one node for all; default: few nodes where possible",
    )  # fmt: skip


def existing_folder(path: Path, what: str, remedy: str) -> Path:
    """`path` when it is a folder. Raises UserError."""
    from cardialign.data_shards.errors import UserError

    if not path.is_dir():
        raise UserError(f"{what} {path} does not exist", remedy)
    return path
