"""Tables of names that users may extend: our own rows, and the entry points of other installed packages."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from cardialign.data_shards.errors import UsageError

log = logging.getLogger(__name__)


class Table(Mapping[str, str]):
    """Name -> "module:Attribute" of one kind of thing.

    Our own rows come first, then the entry points of the group `cardialign.<kind>s`. Nothing is imported until it is
    asked for. A plug-in that takes a name of ours, or one that another package has taken, is named in the log and left
    out; one that cannot be imported is named by `find`, and hides nothing else.
    """

    def __init__(self, kind: str, own: dict[str, str]) -> None:
        self.kind, self.own = kind, own

    @property
    def group(self) -> str:
        """The entry-point group that extends this table."""
        return f"cardialign.{self.kind}s"

    @cached_property
    def plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        """The entry points of other packages that count, by name."""
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in sorted(
            importlib.metadata.entry_points(group=self.group), key=lambda point: (point.name, point.value)
        ):
            if point.name in self.own:
                log.warning("plugin=%s group=%s action=skip reason=the name is one of our own", point.value, self.group)
            elif point.name in found and found[point.name].value != point.value:
                log.warning(
                    "plugin=%s group=%s action=skip reason=%s has the name",
                    point.value,
                    self.group,
                    found[point.name].value,
                )
            else:
                found[point.name] = point
        return found

    def __getitem__(self, name: str) -> str:
        return self.own[name] if name in self.own else self.plugins[name].value

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *self.plugins])

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins)

    def importable(self) -> Iterator[tuple[str, Any]]:
        """Name and thing of every row. A plug-in that cannot be imported is named in the log and skipped."""
        for name in self:
            try:
                yield name, self.find(name)
            except UsageError as error:
                if name in self.own:
                    raise
                log.warning("plugin=%s action=skip reason=%s", name, error.problem)

    def find(self, name: str) -> Any:
        """The thing itself, imported now.

        Raises UsageError for a name that nobody has (with those that there are), and for a plug-in that cannot be
        imported (with its package).
        """
        if name not in self:
            close = difflib.get_close_matches(name, list(self), n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(f"unknown {self.kind} {name!r}{meant}", f"known {self.kind}s: {', '.join(self)}")
        module, _, attribute = self[name].partition(":")
        if name in self.own:
            return getattr(importlib.import_module(module), attribute)
        try:
            return self.plugins[name].load()
        except Exception as error:  # a plug-in may raise anything while it is imported
            package = getattr(self.plugins[name].dist, "name", None) or module
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"{self.kind} {name!r} is a plug-in of {package} and cannot be imported: {reason}",
                f"mend or uninstall {package}, or choose one of: {', '.join(self.own)}",
            ) from error
