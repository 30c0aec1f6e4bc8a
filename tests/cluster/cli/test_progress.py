"""Progress: a bar with an ETA on a terminal, rare plain lines elsewhere."""

from __future__ import annotations

import io

from cardialign.cluster.cli.progress import Progress, clock, two_stages


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO) -> str:
    now = Clock()
    with Progress("shards build", 100, stream=stream, now=now) as progress:
        for done in range(0, 101, 10):
            progress.update(done, figures="2 rejected" if done else "")
            now.at += 4.0
    return stream.getvalue()


def test_a_terminal_gets_one_line_with_bar_and_eta() -> None:
    shown = run(Terminal())
    assert shown.count("\n") == 1 and shown.endswith("\n")
    last = shown.rstrip("\n").split("\r\x1b[2K")[-1]
    assert last == "shards build [########################] 100/100  2 rejected  40s"
    assert "50/100  2 rejected  20s  ETA 20s" in shown


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    lines = run(io.StringIO()).splitlines()
    assert 2 <= len(lines) <= 4 and all("\r" not in line and "[" not in line for line in lines)
    assert lines[0].startswith("shards build 30/100") and "ETA" in lines[0]


def test_short_work_leaves_a_log_alone() -> None:
    stream = io.StringIO()
    with Progress("quick", 3, stream=stream, now=Clock()) as progress:
        for done in range(4):
            progress(done, 3)
    assert stream.getvalue() == ""


def test_clock() -> None:
    assert [clock(s) for s in (4.4, 65, 7265)] == ["4s", "1m05s", "2h01m"]


def test_a_build_counts_what_it_lists_and_its_eta_starts_after_that() -> None:
    stream, now = Terminal(), Clock()
    with (
        Progress("listing records", stream=stream, now=now) as listing,
        Progress("shards build", stream=stream, now=now) as building,
    ):
        show = two_stages(listing, building)
        for seconds, (done, total) in enumerate(((4000, 0), (9000, 0), (0, 100), (10, 100), (50, 100))):
            now.at = 10.0 * seconds
            show(done, total, 0)
    assert "listing records 9000  10s\n" in stream.getvalue()
    assert "50/100  40s  ETA 20s" in stream.getvalue()
