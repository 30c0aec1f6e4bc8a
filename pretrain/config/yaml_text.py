"""The one door through which YAML comes in: a recipe's file, or the value of a `--set`. Whatever is wrong is named."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import DEEPEST

LONGEST = 1 << 18
"""Characters of a document: ten times the longest that is shipped; as many are read in two seconds."""
MOST_VALUES = 100_000
"""Values of a document, those that an alias brings again counted again."""
MOST_CHARACTERS = 1 << 20
"""Of all its values together, counted so."""
_TOO_DEEP = f"lists or sections stand too deep in one another, more than {DEEPEST}"
_STAIRS = re.compile(rf"(?:[\[{{]\s*){{{DEEPEST + 1}}}")
"""Brackets upon brackets, over which the library broods for seconds."""


class _Loader(yaml.SafeLoader):
    """The safe loader; a key that stands twice, a value that its own type cannot hold, a number that is not finite or
    has more than 64 bits, and more or deeper values than anybody writes, are errors with a line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Judged before anything is made: ten aliases of ten aliases stay small until somebody walks through them."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(
                f"lists or sections stand too deep in one another, more than {DEEPEST}", self.peek_event()
            )
        again = self.peek_event() if self.check_event(yaml.AliasEvent) else None
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if id(node) not in self._sizes:
            if again is not None:
                raise self._wrong("an alias refers to what it is part of", again)
            own = len(node.value) if isinstance(node.value, str) else 0
            parts: list[Any] = [] if isinstance(node.value, str) else node.value
            if isinstance(node, yaml.MappingNode):
                parts = [each for pair in node.value for each in pair]
            sizes = [self._sizes[id(each)] for each in parts]
            self._sizes[id(node)] = (1 + sum(size[0] for size in sizes), own + sum(size[1] for size in sizes))
            if self._sizes[id(node)][0] > MOST_VALUES or self._sizes[id(node)][1] > MOST_CHARACTERS:
                raise self._wrong(f"more than {MOST_VALUES} values, or {MOST_CHARACTERS} characters in them", node)
        return node

    @staticmethod
    def _wrong(problem: str, place: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Checked while composing: afterwards a `<<` may give a key again, and that is no mistake."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} stands twice, keep one", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            made = super().construct_object(node, deep)
            if isinstance(made, int) and not -(1 << 63) <= made < 1 << 64:
                raise ValueError(f"a whole number of {made.bit_length()} bits")
            if isinstance(made, float) and not math.isfinite(made):
                raise ValueError("it is no finite number")
            return made
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # the library lets those of int, float and date pass: 2020-13-45 looks like a date and is none
            problem = f"{str(node.value)[:60]!r} cannot be read ({error})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def read_yaml(text: str, origin: str) -> Any:
    """The value of one YAML document; None when it is empty.

    Raises UsageError, opened by `origin`, with line and column of what cannot be read.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{origin} has {len(text)} characters, more than {LONGEST}", "divide it, or name another file")
    if _STAIRS.search(text):
        raise UsageError(
            f"{origin} is not valid YAML: {_TOO_DEEP}",
            "write fewer brackets in one another",
        )
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        reason = _reason(error)
    except RecursionError:
        reason = "lists or sections stand too deep in one another"
    raise UsageError(f"{origin} is not valid YAML: {reason}", "correct the place named above")


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.character!r} at position {error.position}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return place + ", ".join(filter(None, (error.context, error.problem)))
