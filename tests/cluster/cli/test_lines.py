"""Results for readers of a terminal, and for programs."""

from __future__ import annotations

from cardialign.cluster.cli.lines import aligned


def test_readers_of_a_terminal_get_aligned_lines() -> None:
    lines = aligned({"records": 3, "share": 0.123456, "nothing": None, "rejected": {"bad-gain": 2}, "exit_code": 0})
    assert lines == ["records   3", "share     0.1235", "rejected  bad-gain 2"]
