"""The one door through which YAML comes in: a recipe's file, or the value of a `--set`. Whatever is wrong is named."""

from __future__ import annotations

from typing import Any

import yaml

from cardialign.data_shards.errors import UsageError

LONGEST_NUMBER = 1024
"""Bits of a whole number: no setting has longer ones, and Python refuses to write those of more than 4,300 digits."""


class _Loader(yaml.SafeLoader):
    """The safe loader; a key that stands twice, and a value that its own type cannot hold, are errors with a line."""

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
            if isinstance(made, int) and made.bit_length() > LONGEST_NUMBER:
                raise ValueError(f"a whole number of {made.bit_length()} bits")
            return made
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # the library lets those of int, float and date pass: 2020-13-45 looks like a date and is none
            problem = f"{str(node.value)[:60]!r} cannot be read ({error})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def read_yaml(text: str, origin: str) -> Any:
    """The value of one YAML document; None when it is empty.

    Raises UsageError, opened by `origin`, with line and column of what cannot be read.
    """
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
