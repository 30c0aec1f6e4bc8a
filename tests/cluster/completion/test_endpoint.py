"""An endpoint that answers well, late, too often, in broken JSON, elsewhere or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from cardialign.cluster.completion.endpoint import ChatAnswer, Endpoint, ReportRefused
from cardialign.cluster.completion.prompt import messages
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.secret import Secret
from tests.support.chat_server import Reply, chat_server

GOOD = Reply('["Tall T"]')


def endpoint(address: str, **more: object) -> Endpoint:
    return Endpoint(address, "m", **{"timeout": 5.0, "retries": 3, "first_wait": 0.01, **more})  # type: ignore[arg-type]


def test_a_good_answer_comes_back_with_its_tokens_and_the_key_goes_along() -> None:
    with chat_server(lambda report, before: GOOD) as chat:
        answer = endpoint(chat.address, key=Secret("secret")).ask(messages("Normal ECG."))
        assert answer == ChatAnswer('["Tall T"]', 100, 10, True)
        assert chat.keys == {"Bearer secret"} and chat.asked == {"Normal ECG.": 1}
        (body,) = chat.bodies
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 512)
        assert endpoint(chat.address + "/chat/completions/").ask(messages("x")).content == '["Tall T"]'
        assert chat.keys == {"Bearer secret", ""}


def test_tokens_that_the_server_does_not_count_are_estimated_and_said_to_be() -> None:
    with chat_server(lambda report, before: Reply("x" * 40, usage=None)) as chat:
        answer = endpoint(chat.address).ask(messages("Normal ECG."))
        assert answer.answer_tokens == 10 and not answer.counted and answer.prompt_tokens > 50


TROUBLE = {
    "500": Reply(code=500, body=b"overloaded"),
    "503": Reply(code=503, body=b""),
    "429": Reply(code=429, headers={"Retry-After": "0"}, body=b""),
    "late": Reply(late=0.4),
    "cut": Reply('["Tall T"]', cut=True),
    "html": Reply(body=b"<html>gateway</html>"),
    "no choices": Reply(body=b'{"choices": []}'),
    "not utf-8": Reply(body=b"\xff\xfe{"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_passes_by_itself_is_tried_again(name: str) -> None:
    with chat_server(lambda report, before: TROUBLE[name] if before < 2 else GOOD) as chat:
        assert endpoint(chat.address, timeout=0.15).ask(messages("a")).content == '["Tall T"]'
        assert chat.asked["a"] == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [("500", "HTTP 500 .'overloaded'.*after 4 attempts"), ("late", "no answer within 0.15 s"), ("html", "no chat")],
)
def test_what_does_not_pass_ends_with_what_was_seen_and_a_remedy(name: str, said: str) -> None:
    with chat_server(lambda report, before: TROUBLE[name]) as chat:
        with pytest.raises(UserError, match=said) as caught:
            endpoint(chat.address, timeout=0.15).ask(messages("a"))
        assert chat.asked["a"] == 4 and "answers so far are kept" in caught.value.remedy


CHAT = json.dumps({"choices": [{"message": {"content": '["Tall T"]'}, "finish_reason": "stop"}]}).encode()
PARTS = [{"type": "text", "text": '["Tall'}, {"type": "image"}, {"type": "text", "text": ' T"]'}]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=gzip.compress(CHAT), headers={"Content-Encoding": "gzip"}),
        Reply(body=zlib.compress(CHAT), headers={"Content-Encoding": "Deflate"}),
        Reply(body=json.dumps({"choices": [{"message": {"content": PARTS}}]}).encode()),
    ],
)
def test_what_a_gateway_packs_or_gives_in_parts_is_read(reply: Reply) -> None:
    with chat_server(lambda report, before: reply) as chat:
        assert endpoint(chat.address).ask(messages("a")).content == '["Tall T"]'


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(body=b"\x1f\x8bbroken", headers={"Content-Encoding": "gzip"}), "cannot be unpacked"),
        (Reply(body=gzip.compress(b" " * (5 << 20)), headers={"Content-Encoding": "gzip"}), "more than 4 MiB"),
        (Reply(content="x" * (5 << 20)), "more than 4 MiB"),
    ],
)
def test_a_body_that_is_broken_or_too_large_is_said_to_be(reply: Reply, said: str) -> None:
    with chat_server(lambda report, before: reply) as chat, pytest.raises(UserError, match=said):
        endpoint(chat.address, retries=0).ask(messages("a"))


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'data: {"choices": []}\n\n', b'{"error": "not loaded"}'])
def test_who_answers_in_place_of_the_chat_form_is_not_told_to_be_slow(body: bytes) -> None:
    with chat_server(lambda report, before: Reply(body=body)) as chat, pytest.raises(UserError) as caught:
        endpoint(chat.address, retries=0).ask(messages("a"))
    assert "--endpoint" in caught.value.remedy and "overloaded" not in caught.value.remedy


def test_a_parameter_that_the_endpoint_does_not_take_is_left_out_from_then_on() -> None:
    """As services do for models that reason: one complaint at a time, both forms are theirs."""
    told = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
    }

    def reply(report: str, before: int) -> Reply:
        complaint = next((said for name, said in told.items() if name in chat.bodies[-1]), None)
        return GOOD if complaint is None else Reply(code=400, body=complaint.encode())

    with chat_server(reply) as chat:
        asked = endpoint(chat.address, retries=0)
        assert [asked.ask(messages(report)).content for report in "ab"] == ['["Tall T"]'] * 2
    assert chat.asked == {"a": 3, "b": 1} and chat.bodies[-1]["max_completion_tokens"] == 512


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_when_it_wants_to_be_asked_again(form: str) -> None:
    def wait() -> str:
        return "0.4" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=1.5), usegmt=True)

    with chat_server(
        lambda report, before: GOOD if before else Reply(code=429, headers={"Retry-After": wait()}, body=b"")
    ) as chat:
        started = time.monotonic()
        endpoint(chat.address).ask(messages("a"))
        assert time.monotonic() - started >= 0.4
        assert chat.asked["a"] == 2


@pytest.mark.parametrize(
    ("reply", "error", "said", "remedy"),
    [
        (Reply(code=401, body=b"no key"), UserError, "HTTP 401", "CARDIALIGN_LLM_KEY"),
        (Reply(code=404, body=b"no model m"), UserError, "HTTP 404 .'no model m'", "asked for: m"),
        (Reply(code=302, headers={"Location": "http://evil.example/"}, body=b""), UserError, "302", "evil.example"),
    ],
)
def test_what_no_attempt_mends_ends_at_once(reply: Reply, error: type[UserError], said: str, remedy: str) -> None:
    with chat_server(lambda report, before: reply) as chat:
        with pytest.raises(error, match=said) as caught:
            endpoint(chat.address, key=Secret("secret")).ask(messages("a"))
        assert chat.asked["a"] == 1 and remedy in caught.value.remedy


def test_a_request_that_is_refused_concerns_its_report_alone() -> None:
    with chat_server(lambda report, before: Reply(code=400, body=b"context too long")) as chat:
        with pytest.raises(ReportRefused, match="context too long"):
            endpoint(chat.address).ask(messages("a"))
        assert chat.asked["a"] == 1


def test_a_long_wait_is_told_once_and_ends_when_the_work_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """Ten minutes that a server asks for look like a hang to whoever is told nothing."""
    with chat_server(lambda report, before: Reply(code=429, headers={"Retry-After": "600"}, body=b"")) as chat:
        asked = endpoint(chat.address, retries=1)
        several = [threading.Thread(target=_patiently, args=(asked,)) for _ in range(3)]
        for thread in several:
            thread.start()
        until = time.monotonic() + 5
        while sum(chat.asked.values()) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        asked.stop.set()
        for thread in several:
            thread.join(5)
        assert not any(thread.is_alive() for thread in several)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == 1 and "wait=600" in told[0] and "HTTP 429" in told[0]


def _patiently(asked: Endpoint) -> None:
    with contextlib.suppress(UserError):
        asked.ask(messages("a"))


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"it does not answer .*refused.*after 4 attempts"):
            endpoint(address).ask(messages("a"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000", "no address of a server"),
        ("file:///etc/passwd", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://user:word@host/v1", "a user or a password"),
        ("http://[::1/v1", "no address of a server"),
        ("http://host:port/v1", "no address of a server"),
        ("http://host/v1\r\nX: y", "no address of a server"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Endpoint(url, "m")


@pytest.mark.parametrize("key", ["two\nlines", "clé"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="the key of the endpoint") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", Secret(key))
    assert key not in str(caught.value)


@pytest.mark.parametrize("code", [401, 403, 404, 302, 429, 400])
def test_no_message_holds_the_key_or_what_the_address_hides(code: int) -> None:
    """Servers repeat what they refuse; some take the key in the address (`?key=`)."""
    said = Reply(code=code, headers={"Location": "https://else/?key=HUSH99"}, body=b"bad key sk-HUSH77, key=HUSH99")
    with chat_server(lambda report, before: said) as chat:
        asked = endpoint(f"{chat.address}?key=HUSH99", key=Secret("sk-HUSH77"), retries=0)
        with pytest.raises((UserError, ReportRefused)) as caught:
            asked.ask(messages("a"))
    shown = f"{caught.value} {getattr(caught.value, 'remedy', '')}"
    assert f"HTTP {code}" in shown and "HUSH" not in shown


def test_an_address_that_is_none_is_shown_without_its_password() -> None:
    with pytest.raises(UsageError, match="no address of a server") as caught:
        Endpoint("http://bob:HUSH99@[bad/v1?api_key=HUSH77", "m")
    assert "HUSH" not in str(caught.value)
