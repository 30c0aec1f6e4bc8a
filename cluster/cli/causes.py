"""What a machine or an input can cause and no command foresaw, told in a sentence all the same.

Where a command knows more it raises a `UserError` of its own; this is the last door before "a defect of ours".
"""

from __future__ import annotations

import errno
import importlib.metadata
import json

from cardialign.data_shards.extras import missing

REMEDIES = {
    errno.ENOSPC: "free space on that disk, or write elsewhere; then run the same command again",
    errno.EDQUOT: "free space under your quota, or write elsewhere; then run the same command again",
    errno.EROFS: "that disk is mounted read-only: write elsewhere",
    errno.EACCES: "ask for the rights to that path, or name another",
    errno.EPERM: "ask for the rights to that path, or name another",
    errno.ENOENT: "check how the path is written",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "move what lies there, or name another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536)",
    errno.ENFILE: "close other programs: this machine has too many files open",
}

LIGHTER = {
    "shards": ("cohort", "embed", "exposure", "shards"),
    "cluster": ("list", "logs", "registry", "status", "stop", "submit", "tracking"),
}
"""Extra -> first words of the commands that need no more than it brings; the others need `train`."""


def extra_of(command: str | None) -> str:
    """The extra that brings all that a command needs."""
    first = (command or "").partition(" ")[0]
    return next((extra for extra, words in LIGHTER.items() if first in words), "train")


def cause_of(error: BaseException, command: str | None = None) -> tuple[str, str] | None:
    """Problem and remedy for what disks, memory, rights, packages and damaged files cause; None for anything else.

    command: the one that met it.
    """
    told = missing(error, f"cardialign {command}" if command else "this command", extra_of(command))
    if told is not None:
        return told.problem, told.remedy
    if isinstance(error, ImportError):
        return f"a package is missing or broken: {error}", "see `cardialign doctor` for what is missing here"
    if _in_lists_of_packages(error):
        return (
            f"an installed package has a list of entry points that cannot be read ({_unreadable_lists()}): {error}",
            "mend or uninstall it: torch and others cannot be imported beside it",
        )
    if isinstance(error, OSError):
        places = [str(place) for place in (error.filename, error.filename2) if place is not None]
        said = error.strerror or str(error) or type(error).__name__
        remedy = REMEDIES.get(error.errno or 0, "check the path, its rights, and that its disk or server is there")
        return f"{' -> '.join(places)}: {said}" if places else said, remedy
    if isinstance(error, MemoryError) or _out_of_memory(error):
        said = next(iter(str(error).splitlines()), "")
        return f"not enough memory{': ' if said else ''}{said}", "use smaller sizes, or a machine with more memory"
    if isinstance(error, RecursionError):
        return "something that was read is nested too deep", "look at the JSON and YAML files that the command reads"
    if isinstance(error, json.JSONDecodeError):
        return f"a file that was read is no JSON: {error}", "look at the JSON files that the command reads"
    if isinstance(error, UnicodeDecodeError):
        return f"a file that was read is not UTF-8 text: {error}", "save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"a name is no Unicode text and cannot be written: {error}", "give files and folders names in UTF-8"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"{error}", "set HOME, or write paths without ~"
    return None


def _in_lists_of_packages(error: BaseException) -> bool:
    """Whether it was raised while Python read what the installed packages declare."""
    step = error.__traceback__
    while step is not None:
        if (
            step.tb_frame.f_globals.get("__name__") == "importlib.metadata"
            and "entry_points" in step.tb_frame.f_code.co_name
        ):
            return True
        step = step.tb_next
    return False


def _unreadable_lists() -> str:
    found = []
    for package in importlib.metadata.distributions():
        try:
            _ = package.entry_points
        except Exception:
            found.append(str(getattr(package, "_path", "a package without a path")))
    return ", ".join(found)


def _out_of_memory(error: BaseException) -> bool:
    """What torch raises is a RuntimeError, on the CPU one without a class of its own."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory")
    )
