"""Ctrl-C, SIGTERM and SIGHUP end any command with one sentence and a shell's code, whatever a library makes of them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from cardialign.cluster import main as cli
from cardialign.cluster.commands import module_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _run(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], object]) -> int:
    monkeypatch.setattr(module_of("registry list"), "run", run)
    return cli.main(["registry", "list"])


@pytest.fixture(autouse=True)
def _plain_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
    ],
)
def test_a_signal_ends_a_command_as_a_shell_counts_it(
    number: signal.Signals, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = []

    def work(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal was not heard")
        finally:
            closed.append("what was open")

    handlers = [signal.getsignal(each) for each in SIGNALS]
    assert _run(monkeypatch, work) == code
    assert capsys.readouterr().err == f"cardialign: {said}\n" and closed == ["what was open"]
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("made", [AttributeError("half of a module"), SystemExit(15), RuntimeError("it ended: 15")])
def test_what_a_library_makes_of_a_signal_is_no_defect_of_ours(
    number: signal.Signals, made: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise made from None

    assert _run(monkeypatch, work) == 128 + number
    assert capsys.readouterr().err.startswith("cardialign: interrupted")


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in SIGNALS:  # as `nohup` and a shell's `&` leave them
        signal.signal(number, signal.SIG_IGN)

    def work(args: argparse.Namespace) -> dict[str, object]:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        return {}

    monkeypatch.setattr(module_of("registry list"), "summary", lambda result: ["done"])
    assert _run(monkeypatch, work) == 0


def test_a_second_sigterm_ends_at_once_what_does_not_end_on_the_first() -> None:
    program = (
        "import os, signal, time\n"
        "from cardialign.cluster.cli.interrupts import Interrupts\n"
        "with Interrupts().listening():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does: the same wish\n"
        "        print('once', flush=True)\n"
        "        time.sleep(0.25)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "once\n")
