"""Tables of names that users may extend: our own rows, and the entry points of other installed packages."""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.metadata
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import shortened

log = logging.getLogger(__name__)

Told = TypeVar("Told")
Check = Callable[[Any], str | None]
"""Thing -> what keeps it from being used, as the end of a sentence; None when nothing does."""


class Table(Mapping[str, str]):
    """Name -> "module:Attribute" of one kind of thing.

    Our own rows come first, then the entry points of the group `cardialign.<kind>s`. Nothing is imported until it is
    asked for. A plug-in that takes a name of ours, or one that another package has taken, whose name is no word, or
    whose package has a list of entry points that cannot be read, is named in the log and left out; one that cannot be
    imported, or fails `check`, is named by `find`, and hides nothing else.

    aliases: other words for rows of our own. `find` knows them; they are not listed, and no plug-in may take them.
    """

    def __init__(
        self,
        kind: str,
        own: dict[str, str],
        check: Check = lambda thing: None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.own, self.check, self.aliases = kind, own, check, aliases or {}

    @property
    def group(self) -> str:
        """The entry-point group that extends this table."""
        return f"cardialign.{self.kind}s"

    @cached_property
    def plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        """The entry points of other packages that count, by name."""
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in sorted(_entry_points(self.group), key=lambda point: (point.name, point.value)):
            if _WORD.fullmatch(point.name) is None:
                told = shortened(point.name)
                log.warning(
                    "plugin=%s group=%s action=skip reason=its name %s is no word", point.value, self.group, told
                )
                continue
            first = found.setdefault(point.name, point)
            reason = "" if first.value == point.value else f"{first.value} has the name"
            if point.name in self.own or point.name in self.aliases:
                reason = "the name is one of our own"
                del found[point.name]
            if reason:
                log.warning("plugin=%s group=%s action=skip reason=%s", point.value, self.group, reason)
        return found

    def __getitem__(self, name: str) -> str:
        return self.own[name] if name in self.own else self.plugins[name].value

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *self.plugins])

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins)

    def importable(self, ask: Callable[[Any], Told]) -> Iterator[tuple[str, Told]]:
        """Name of every row, and what `ask` gets from its thing.

        A plug-in that cannot be imported, used or asked is named in the log and skipped.
        """
        for name in self:
            try:
                thing = self.find(name)
                with self.blamed(name, "cannot be asked"):
                    told = ask(thing)
            except UserError as error:
                if name in self.own:
                    raise
                log.warning("plugin=%s action=skip reason=%s", name, error.problem)
            else:
                yield name, told

    def find(self, name: str) -> Any:
        """The thing itself, imported now.

        Raises UsageError for a name that nobody has (with those that there are), and for a plug-in that cannot be
        imported or used (with its package).
        """
        name = self.aliases.get(name, name)
        if name in self.own:
            return thing_at(self.own[name])
        if name not in self.plugins:
            raise UsageError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, [*self, *self.aliases])}",
                f"known {self.kind}s: {', '.join(self) or 'none'}; or install the package that declares {name!r}",
            )
        point = self.plugins[name]
        if point.pattern.match(point.value) is None:
            raise self._broken(name, f"cannot be imported: {point.value!r} is not MODULE:ATTRIBUTE")
        with self.blamed(name, "cannot be imported", passing=()):
            thing = point.load()
        with self.blamed(name, "cannot be used"):
            reason = self.check(thing)
        if reason is not None:
            raise self._broken(name, f"cannot be used: {reason}")
        return thing

    @contextmanager
    def blamed(self, name: str, outcome: str, passing: type[Exception] | tuple[()] = UserError) -> Iterator[None]:
        """What the plug-in `name` raises in this block becomes a UsageError that names its package.

        `passing` stays as it is, and so does whatever a row of our own raises: that is a defect of ours.
        """
        try:
            yield
        except passing:
            raise
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # code of other people may raise anything, or try to end the program
            if name not in self.plugins:
                raise
            raise self._broken(name, f"{outcome}: {_told(error)}") from error

    @contextmanager
    def watched(self, name: str, outcome: str) -> Iterator[None]:
        """As `blamed`, for work that code of ours does with the plug-in `name` in the middle of it.

        Only what went through a module of its package is laid at its door. What a machine causes stays as it is: a full
        disk, a lack of memory, a dead peer of a collective.
        """
        if name in self.own:
            yield
            return
        try:
            yield
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            if name not in self.plugins or not _went_through(error, self.plugins[name].value):
                raise
            raise self._broken(name, f"{outcome}: {_told(error)}") from error

    def state(self) -> dict[str, str | None]:
        """Every plug-in of this table, tried: name -> what is wrong with it, None when nothing is."""
        told: dict[str, str | None] = {}
        for name in self.plugins:
            try:
                self.find(name)
                told[name] = None
            except UserError as error:
                told[name] = error.problem
        return told

    def _broken(self, name: str, why: str) -> UsageError:
        point = self.plugins[name]
        package = getattr(point.dist, "name", None) or point.value.partition(":")[0]
        return UsageError(
            f"{self.kind} {name!r} is a plug-in of {package} and {why}",
            f"mend or uninstall {package}" + f", or choose one of: {', '.join(self.own)}" * bool(self.own),
        )


_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
"""A name that can be written on a command line and in a recipe."""


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    """Those of every installed package, of two installations of one that of the first. A package whose list cannot be
    read is named in the log, and hides no other, as it does in `importlib.metadata.entry_points`."""
    found: list[importlib.metadata.EntryPoint] = []
    seen: set[str] = set()
    for package in importlib.metadata.distributions():
        where = str(getattr(package, "_path", "a package"))
        try:
            # without reading the metadata of hundreds of packages, where Python can
            name = getattr(package, "_normalized_name", None) or package.name or where
            if name in seen:
                continue
            seen.add(name)
            found += package.entry_points.select(group=group)
        except Exception as error:  # what others wrote is parsed by code of others
            log.warning("package=%s action=skip reason=its entry points cannot be read: %s", where, _told(error))
    return found


def _told(error: BaseException) -> str:
    """Kind and text of an error of other people, whose own code may fail when it is asked for the text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


_OF_THE_MACHINE = ("torch.distributed", "deepspeed.comm")


def _went_through(error: Exception, where: str) -> bool:
    """Whether the error passed a module of the package of "module:Attribute", and no exchange between processes."""
    package = where.partition(":")[0].partition(".")[0]
    modules = []
    step = error.__traceback__
    while step is not None:
        modules.append(str(step.tb_frame.f_globals.get("__name__", "")))
        step = step.tb_next
    exchanged = any(module.startswith(_OF_THE_MACHINE) for module in modules)
    said = _told(error).lower()
    memory = "out of memory" in said or "allocate memory" in said
    return not exchanged and not memory and any(module.partition(".")[0] == package for module in modules)


def thing_at(where: str) -> Any:
    """ "module:Attribute" (or "module:Class.attribute") -> the thing, imported now."""
    module, _, path = where.partition(":")
    with nullcontext() if module in sys.modules else collector_at_rest():
        found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No collection of garbage in this block: imports and traces make little, a pass over what torch
    holds costs 0.08 s.

    What came in goes to the oldest generation, unseen: the next collection of young objects would be that pass.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of the known words, whatever their case; empty when none is near."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""
