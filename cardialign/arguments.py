"""What the public functions take, checked where a user calls them: a wrong kind of thing is named at once, and so is a
package that an installation lacks.

Nothing is imported for the check that the function itself does not import.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

PATH = "a path"
WANTED: dict[str, dict[str, tuple[str, str]]] = {
    "open_source": {"name": ("builtins:str", "the word of a reader, such as 'ptb-xl'"), "root": (PATH, "a folder")},
    "build_shards": {
        "source": ("cardialign.data_shards.sources.base:Source", "what cardialign.open_source(...) gives"),
        "out": (PATH, "a new folder"),
        "plan": ("?cardialign.data_shards.build.build:SetPlan", "a cardialign.SetPlan(...)"),
    },
    "open_shards": {"path": (PATH, "the folder or URL of a shard set")},
    "draw_ecg": {
        "record": ("cardialign.data_shards.record:EcgRecord", "one record: cardialign.open_shards(...).read_record(0)"),
        "path": ("?" + PATH, "the file to write"),
    },
    "load_recipe": {"recipe": (PATH, "the name of a recipe or a YAML file")},
    "train": {
        "config": ("cardialign.pretrain.config.run:RunConfig", "what cardialign.load_recipe(...) gives"),
        "run_dir": (PATH, "a folder"),
        "workers": ("builtins:int", "a whole number"),
        "register_as": ("?builtins:str", "the name of the registered encoder"),
    },
    "export": {"run_dir": (PATH, "the folder of a run")},
    "load_encoder": {"path": (PATH, "the folder of an exported encoder, or one from outside")},
    "evaluate": {
        "encoder": ("cardialign.pretrain.export.usable:UsableEncoder", "what cardialign.load_encoder(...) gives"),
        "shard_set": ("cardialign.data_shards.shard_set.shard_set:ShardSet", "what cardialign.open_shards(...) gives"),
    },
}
"""Public name -> argument -> (the class that it must be of, what to give); `?`: it may be None."""

EXTRA = {
    **dict.fromkeys(("SetPlan", "build_shards", "draw_ecg", "open_shards", "open_source"), "shards"),
    **dict.fromkeys(("evaluate", "export", "load_recipe", "train"), "train"),
}
"""Public name -> the extra that brings all that it needs. The others need none, but for what they are given: an ONNX
file, another sampling rate."""


def needed_by(name: str) -> AbstractContextManager[None]:
    """In this block a package that is not installed is told with the extra that brings what the public `name` needs."""
    told: AbstractContextManager[None] = import_module("cardialign.data_shards.extras").needed_by(
        f"cardialign.{name}", EXTRA.get(name, "")
    )
    return told


def checked(name: str, found: Any) -> Any:
    """The public thing `name`; a function of `WANTED` looks at its arguments first and raises UsageError."""
    if name not in WANTED:
        return found
    signature = inspect.signature(found)

    @functools.wraps(found)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for argument, (kind, remedy) in WANTED[name].items():
            if argument in given and not _is(given[argument], kind):
                errors = import_module("cardialign.data_shards.errors")
                shown = f"{given[argument]!r:.60}"
                raise errors.UsageError(
                    f"cardialign.{name}: {argument} is {shown} (a {type(given[argument]).__name__})", f"give {remedy}"
                )
        with needed_by(name):
            return found(*args, **kwargs)

    call.__module__, call.__qualname__ = "cardialign", name  # found again under the name that users pickle
    return call


def _is(value: Any, kind: str) -> bool:
    if kind.startswith("?"):
        return value is None or _is(value, kind[1:])
    if kind == PATH:
        return isinstance(value, str | os.PathLike) and bool(os.fspath(value))
    module, _, attribute = kind.partition(":")
    expected: Callable[..., Any] = getattr(import_module(module), attribute)
    return isinstance(value, expected)  # type: ignore[arg-type]
