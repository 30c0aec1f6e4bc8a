"""The one family of errors that a user can cause, raised by every floor above the kernels.

`assert` is for invariants of our own; everything a user can get wrong raises `UserError` (or a subclass) and says what is wrong, where, and
what to do about it. The command line turns it into one readable line and an exit code.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave or set is wrong. `problem` names the thing, `remedy` the way out."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)

    def __reduce__(self):  # exceptions cross process borders; keep both parts
        return type(self), (self.problem, self.remedy)


class UsageError(UserError):
    """Wrong words on the command line or in a configuration (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A data set, shard, record or index that cannot be read as promised."""
