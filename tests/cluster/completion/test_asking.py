"""Every distinct report is asked once, however often the work stops; a budget is never exceeded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.asking import NO_LIMIT, Asked, Budget, ask_all
from cardialign.cluster.completion.endpoint import ChatAnswer, Endpoint
from cardialign.data_shards.errors import DataError, UserError
from tests.support.chat_server import Chat, Reply, chat_server

REPORTS = [f"Report number {k}" for k in range(30)]
GOOD = Reply('["Tall T"]')


def ask(chat: Chat, folder: Path, budget: Budget = NO_LIMIT, concurrency: int = 4, **more: object) -> Asked:
    endpoint = Endpoint(chat.address, "m", retries=1, first_wait=0.01, timeout=5, **more)  # type: ignore[arg-type]
    with AnswerStore.opened(folder, "m") as store:
        return ask_all(REPORTS, endpoint, store, budget, concurrency)


def answered(folder: Path) -> set[str]:
    with AnswerStore.opened(folder, "m") as store:
        return {report for report in REPORTS if store.get(report) is not None}


def test_each_is_asked_once_several_at_a_time_and_never_again(tmp_path: Path) -> None:
    with chat_server(lambda report, before: Reply('["Tall T"]', late=0.02)) as chat:
        assert ask(chat, tmp_path) == Asked(30, 0)
        assert set(chat.asked.values()) == {1} and 2 <= chat.most <= 4
        assert ask(chat, tmp_path) == Asked(0, 0) and sum(chat.asked.values()) == 30
    with AnswerStore.opened(tmp_path, "m") as store:
        assert store.get("report NUMBER  3") == store.get(REPORTS[3]) != None  # noqa: E711
        assert store.spent == (3000, 300)
    with AnswerStore.opened(tmp_path, "another") as store:
        assert store.get(REPORTS[3]) is None


WORK = """
import sys
from pathlib import Path
from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.asking import Budget, ask_all
from cardialign.cluster.completion.endpoint import Endpoint
with AnswerStore.opened(Path(sys.argv[2]), "m") as store:
    ask_all([f"Report number {k}" for k in range(30)], Endpoint(sys.argv[1], "m"), store, Budget(), 3)
"""


@pytest.mark.processes
def test_after_a_kill_only_what_was_under_way_is_asked_again(tmp_path: Path) -> None:
    many = threading.Event()

    def reply(report: str, before: int) -> Reply:
        if sum(chat.asked.values()) >= 12:
            many.set()
        return Reply('["Tall T"]', late=0.03)

    with chat_server(reply) as chat:
        process = subprocess.Popen([sys.executable, "-c", WORK, chat.address, str(tmp_path)], env=os.environ)
        assert many.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        time.sleep(0.1)
        kept, before = answered(tmp_path), sum(chat.asked.values())
        assert 0 < len(kept) < 30 and before - len(kept) <= 3
        assert ask(chat, tmp_path).asked == 30 - len(kept)
        assert all(chat.asked[report] == 1 for report in kept) and answered(tmp_path) == set(REPORTS)


def test_a_line_that_a_kill_cut_and_what_is_no_answer_are_asked_again(tmp_path: Path) -> None:
    with AnswerStore.opened(tmp_path, "m") as store:
        store.add("one", ChatAnswer("[]", 5, 1, True))
        store.add("two", ChatAnswer("[]", 5, 1, True))
        path = store.path
    lines = path.read_bytes().splitlines()
    odd = [b'{"key": 3}', b"null", b"[" * 9999, json.dumps({"key": "k", "content": 3}).encode(), b"\xff"]
    path.write_bytes(b"\n".join([*odd, lines[0], lines[1][:-9]]))
    with AnswerStore.opened(tmp_path, "m") as store:
        assert store.get("one") is not None and store.get("two") is None and store.spent == (5, 1)
        store.add("two", ChatAnswer("[]", 7, 2, True))
    with AnswerStore.opened(tmp_path, "m") as store:
        assert store.get("two") == ChatAnswer("[]", 7, 2, True) and store.spent == (12, 3)


def test_two_processes_do_not_add_to_one_file(tmp_path: Path) -> None:
    with AnswerStore.opened(tmp_path, "m"), pytest.raises(UserError, match="another process adds to"):
        with AnswerStore.opened(tmp_path, "m"):
            pass


@pytest.mark.parametrize(
    "budget", [Budget(tokens=4000), Budget(cost=0.5, prices=(100.0, 300.0))], ids=["tokens", "cost"]
)
def test_a_budget_stops_it_before_it_is_exceeded_and_the_same_command_goes_on(tmp_path: Path, budget: Budget) -> None:
    """Each answer takes 120 + 30 tokens: 26 of them fit into 4,000 tokens, 23 into 0.5 (0.021 each)."""
    with chat_server(lambda report, before: Reply('["Tall T"]', usage=(120, 30))) as chat:
        with pytest.raises(UserError, match=r"budget of .* is reached") as caught:
            ask(chat, tmp_path, budget, answer_tokens=30)
        done = len(answered(tmp_path))
        assert sum(chat.asked.values()) == done and 10 < done <= (26 if budget.tokens else 23)
        assert f"{30 - done} of 30 reports are not answered" in caught.value.problem
        assert "no answer is paid twice" in caught.value.remedy
        assert ask(chat, tmp_path).asked == 30 - done


def test_a_model_that_writes_prose_is_stopped_early_and_its_answers_are_kept(tmp_path: Path) -> None:
    with chat_server(lambda report, before: Reply("Sure! The ECG shows tall T waves.")) as chat:
        with pytest.raises(DataError, match="answers are no JSON lists"):
            ask(chat, tmp_path, concurrency=2)
        assert 10 <= len(answered(tmp_path)) <= 12
    with chat_server(lambda report, before: Reply("prose" if report.endswith("7") else "[]")) as chat:
        assert ask(chat, tmp_path / "mixed") == Asked(30, 0)


def test_answers_without_room_are_shown_and_asked_again_with_more_of_it(tmp_path: Path) -> None:
    def reply(report: str, before: int) -> Reply:
        most = chat.bodies[-1]["max_tokens"]
        said, end = ('["Tall T"]', "stop") if most > 512 else ('<think>The report "Q"', "length")
        body = {"choices": [{"message": {"content": said}, "finish_reason": end}]}
        return Reply(body=json.dumps(body).encode())

    with chat_server(reply) as chat:
        with pytest.raises(DataError, match=r"one of them begins '<think>.*10 were cut off at 512 tokens") as caught:
            ask(chat, tmp_path, concurrency=1)
        assert "--answer-tokens" in caught.value.remedy and sum(chat.asked.values()) == 10
        assert ask(chat, tmp_path, answer_tokens=600) == Asked(30, 0)
        assert ask(chat, tmp_path, answer_tokens=700) == Asked(0, 0)


def test_one_refused_report_is_counted_and_all_refused_are_an_error(tmp_path: Path) -> None:
    refusal = Reply(code=400, body=b"too long")
    with chat_server(lambda report, before: refusal if report.endswith(" 7") else GOOD) as chat:
        found = ask(chat, tmp_path)
        assert (found.asked, found.refused) == (29, 1) and "too long" in found.first_refusal
    with chat_server(lambda report, before: refusal) as chat:
        with pytest.raises(UserError, match="refuses every request"):
            ask(chat, tmp_path / "none")


def test_an_endpoint_that_dies_half_way_loses_nothing(tmp_path: Path) -> None:
    dead = Reply(code=500, body=b"")
    with chat_server(lambda report, before: GOOD if sum(chat.asked.values()) <= 12 else dead) as chat:
        with pytest.raises(UserError, match="HTTP 500"):
            ask(chat, tmp_path)
        kept = answered(tmp_path)
        assert len(kept) == 12
        chat.replies = lambda report, before: GOOD
        assert ask(chat, tmp_path).asked == 18
