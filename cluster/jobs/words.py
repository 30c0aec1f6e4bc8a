"""The words of a command that a cluster shall run, judged where they are typed.

They are read by the command's own parser. What names a place of the submitting machine is refused, because the driver
runs elsewhere: but a YAML file (a recipe, a study, prompts) travels along, and its word becomes its place there.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.jobs.travel import check_no_secret
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of

NOT_INSIDE = ("submit", "status", "logs", "stop", "list")
YAML = (".yaml", ".yml")
LARGEST_FILE = 2**20
NETWORKED = ("nfs", "lustre", "gpfs", "ceph", "glusterfs", "beegfs", "fuse.", "smb", "cifs", "9p", "wekafs", "panfs")
FILES = '"$CARDIALIGN_FILES"/'
THIS_MACHINE = tuple(map(Path, ("/tmp", "/var/tmp", "/dev/shm")))  # noqa: S108 - a path below them is named, not used


@dataclass(frozen=True)
class Reader:
    """What knows the commands.

    parse: as `parse_known_args`. config: of a run (None for other commands); raises UsageError for all its mistakes.
    """

    parse: Callable[[Sequence[str]], tuple[argparse.Namespace, list[str]]]
    config: Callable[[argparse.Namespace], Any]


@dataclass(frozen=True)
class Inner:
    """A judged command. words: as the driver gets them, a file that travels as its name in `files`.

    run_dir: of a run. out: where another command puts its work. Both "" for a command without one. tracks: it would
    name its MLflow store itself.
    """

    command: str
    given: tuple[str, ...]
    words: tuple[str, ...]
    run_dir: str = ""
    out: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    tracks: bool = False

    def entrypoint(self, python: str) -> str:
        """The line of shell that Ray runs: `exec` lets its signals reach the driver. python: words of shell."""
        line = " ".join(FILES + shlex.quote(word) if word in self.files else self._quoted(word) for word in self.words)
        before = 'CARDIALIGN_FILES="$PWD"; ' if self.files else ""
        if self.tracks and (work := self.run_dir or self.out):  # the job's own folder goes, and a store there with it
            beside = f"sqlite:///{Path(work).parent / 'mlflow.db'}"
            line += f' --tracking-uri "${{MLFLOW_TRACKING_URI:-{_in_quotes(beside)}}}"'
        return f"{before}exec {python} -m cardialign {line}"

    def _quoted(self, word: str) -> str:
        option, equals, value = word.partition("=")
        if equals and value in self.files:
            return f"{shlex.quote(option)}={FILES}{shlex.quote(value)}"
        return shlex.quote(word)


def judge(words: Sequence[str], reader: Reader, environment: Mapping[str, str], *, here: bool) -> Inner:
    """The command in `words`. here: the cluster's head is this machine, whose folders then count.

    Raises UsageError for words that the command itself would refuse, for relative places and those of this machine
    alone, for a secret, and for what only the submitting side can do.
    """
    if not words:
        raise UsageError("submit: no command is given", "write it after --, for example: -- pretrain --recipe ...")
    if words[0] in NOT_INSIDE:
        raise UsageError(f"`{words[0]}` cannot be submitted", "run it here: it speaks with the cluster itself")
    if re.match(r"(cardialign|python[0-9.]*|uv|poetry)$", Path(words[0]).name):
        raise UsageError(
            f"submit: the command begins with {words[0]}",
            "begin with the command's own word, as behind `cardialign` in a shell: -- pretrain --recipe ...",
        )
    check_no_secret(words, environment)
    args, unknown = reader.parse(words)
    if unknown:
        raise UsageError(f"{args.command}: unknown option {' '.join(unknown)}", f"see `cardialign {args.command} -h`")
    if getattr(args, "address", None) is not None:
        raise UsageError(
            f"--address {args.address} stands in the submitted command",
            "leave it out: the driver runs inside the cluster and joins it",
        )
    files = _yaml_files(words)
    _check_places(words, args, files, here=here)
    _check_recipe(reader.config(args), here=here)
    inner = [_renamed(word, files) for word in words]
    inner += ["--address", "auto"] if hasattr(args, "address") else []
    return Inner(
        command=args.command,
        given=tuple(words),
        words=tuple(inner),
        run_dir=str(args.run_dir) if args.command == "pretrain" else "",
        out=str(getattr(args, "out", None) or ""),
        files={name: path for path, name in files.items()},
        tracks=hasattr(args, "tracking_uri") and not any(word.startswith("--tracking-uri") for word in words),
    )


def _yaml_files(words: Sequence[str]) -> dict[Path, str]:
    """File here -> its name in the job, of every word that names one."""
    found: dict[Path, str] = {}
    for word in words:
        path = _file(word)
        if path is None or path in found:
            continue
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{path} has more than {LARGEST_FILE:,} bytes", "put it on storage that the cluster sees")
        found[path] = f"{len(found)}/{path.name}"  # its own name: a recipe may be called like its file
    return found


def _file(word: str) -> Path | None:
    """The YAML file of this machine that a word (or the value of `--option=value`) names."""
    text = word.partition("=")[2] if word.startswith("--") else word
    try:
        path = Path(text).expanduser()
        return path.absolute() if path.suffix.lower() in YAML and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _renamed(word: str, files: Mapping[Path, str]) -> str:
    path = _file(word)
    if path is None:
        return word
    return f"{word.partition('=')[0]}={files[path]}" if word.startswith("--") else files[path]


def _check_places(words: Sequence[str], args: argparse.Namespace, files: Mapping[Path, str], *, here: bool) -> None:
    home = [word for word in words if word.startswith("~") or "=~" in word]
    if home:
        raise UsageError(f"{home[0]} means the home folder of this machine", "give a place on the cluster's storage")
    problems = []
    own = words[len(str(args.command).split()) :]
    typed = {Path(part) for word in own for part in (word, word.partition("=")[2]) if part}
    for name, values in sorted(vars(args).items()):
        for value in _each(values):
            path = _place(name, value)
            if path is not None and path.absolute() not in files and (why := _not_there(path, here=here)):
                usual = "" if path.is_absolute() or name == "mixture" or path in typed else ", which nobody gave,"
                problems.append(f"--{name.replace('_', '-')} {path}{usual} {why}")
    if problems:
        raise UsageError(
            "the driver runs on the cluster, and would not find what is named:\n"
            + "\n".join(f"  - {problem}" for problem in problems),
            "give absolute paths on storage that every node mounts, or URLs (s3://...)",
        )


def _each(values: Any) -> Iterator[Any]:
    """The values of an option: one, or those of a list, of pairs too (`--sets NAME=SHARDS`)."""
    if isinstance(values, list | tuple):
        for value in values:
            yield from _each(value)
    else:
        yield values


def _place(name: str, value: Any) -> Path | None:
    """The file or folder that an option names: by its kind, or because a word of its form is there."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        return None
    text = value.rpartition("=")[0] if name == "mixture" else value
    try:
        found = name == "mixture" or (os.sep in text and "://" not in text and Path(text).exists())
    except (OSError, ValueError):
        return None
    return Path(text) if found else None


def _check_recipe(config: Any, *, here: bool) -> None:
    """The places that the recipe of a run names itself."""
    if config is None:
        return
    named = [str(part.shards) for part in config.data.parts]
    named += [str(config.init_from)] if config.init_from else []
    for place in named:
        if not place.startswith("models:/") and (why := _not_there(Path(place), here=here)):
            raise UsageError(
                f"the recipe names {place}, which {why}", "let it name a place on the cluster's storage, or a URL"
            )


def _not_there(path: Path, *, here: bool) -> str:
    """Why the nodes of a cluster cannot mean `path`, "" when they can."""
    if url_of(path) is not None:
        return ""
    if not path.is_absolute():
        return "is relative: the driver has another working folder"
    if here:
        return ""
    for folder in (Path.home(), Path(tempfile.gettempdir()), *THIS_MACHINE):
        if folder != Path("/") and path.is_relative_to(folder) and not _networked(path):
            return f"lies in {folder}, which is this machine's alone"
    return ""


def _networked(path: Path) -> bool:
    """Whether `path` lies, or would lie, on a network file system."""
    best, kind = "", ""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        point, form = line.split(" ")[1:3]
        point = point.encode().decode("unicode_escape", "replace")
        if len(point) >= len(best) and (path == Path(point) or path.is_relative_to(point)):
            best, kind = point, form
    return kind.startswith(NETWORKED)


def on_this_machine(session: str) -> bool:
    """Whether the head of the cluster with this session is this machine: Ray keeps the session's folder there.

    A loopback address says nothing: a port-forward to a far cluster has one, too.
    """
    if not session or os.sep in session:
        return False
    roots = [THIS_MACHINE[0], Path(tempfile.gettempdir()), Path(os.environ.get("RAY_TMPDIR") or THIS_MACHINE[0])]
    return any(any(root.glob(f"ray*/{session}")) for root in roots)


def _in_quotes(text: str) -> str:
    """`text` within double quotes and a `${NAME:-...}` of a shell."""
    return "".join(f"\\{letter}" if letter in '\\"$`}' else letter for letter in text)
