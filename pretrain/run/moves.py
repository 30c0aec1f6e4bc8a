"""Whether the work of this process moves on, as its loop says: that a process lives, and beats, says nothing of it."""

from __future__ import annotations

_moves = 0


def moved() -> None:
    """Something was done: a micro-batch, a step, a part of the way to the first one. Costs next to nothing."""
    global _moves
    _moves += 1


def moves() -> int:
    """How often that was said in this process, more or less: what counts is that it changes."""
    return _moves
