"""Any endpoint that speaks OpenAI's chat form over HTTP (vLLM, llama.cpp, Ollama, a service): asked with patience.

What passes by itself (429, 5xx, a line that breaks, an answer that comes too late) is tried again after a wait that
doubles, or after the time that the server names in `Retry-After`. What does not ends the work with its remedy.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from cardialign.cluster.cli.address import HIDDEN, without_secrets
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import is_count, parse_json

log = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")
KEY = "CARDIALIGN_LLM_KEY"
"""Environment variable of the key, when the endpoint wants one."""
_LARGEST_ANSWER = 4 << 20
_LONGEST_WAIT = 600.0
_LONG_WAIT = 5.0
"""Seconds; who is to wait longer is told."""
_AGAIN = (408, 409, 425, 429)
_PER_TOKEN = 4
"""Characters of English text per token, roughly: where a server counts none."""


class ReportRefused(Exception):  # noqa: N818  (an outcome for one report, counted, not an error of the program)
    """The endpoint does not take this one request."""


@dataclass(frozen=True)
class ChatAnswer:
    """What the model said, and what it cost in tokens; counted: by the endpoint, else estimated by length."""

    content: str
    prompt_tokens: int
    answer_tokens: int
    counted: bool


class _Again(Exception):  # noqa: N818  (asks for another attempt)
    def __init__(self, why: str, after: float | None = None) -> None:
        self.why, self.after = why, after
        super().__init__(why)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and lose the question."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class Endpoint:
    """url: with or without `/chat/completions`. key: sent as a bearer token; "" sends none. answer_tokens: the most
    that an answer may take. timeout: seconds until an answer must be there. retries: attempts after the first;
    first_wait: seconds before the first of them.

    Raises UsageError for a URL that is none.
    """

    url: str
    model: str
    key: str = ""
    answer_tokens: int = 512
    timeout: float = 60.0
    retries: int = 6
    first_wait: float = 0.5
    stop: threading.Event = field(default_factory=threading.Event)
    _telling: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _told_until: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:  # a bracket without its other half, a port that is no number
            usable = False
        if not usable or not self.url.isprintable():
            raise UsageError(
                f"--endpoint {without_secrets(self.url, self.url)[:80]!r} is no address of a server",
                "write for example http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password:
            raise UsageError("--endpoint holds a user or a password", f"give the key in the environment: {KEY}")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError("the key of the endpoint holds characters that no header can", f"see what {KEY} holds")
        path = parts.path.rstrip("/")
        path += "" if path.endswith("/chat/completions") else "/chat/completions"
        self._address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self._shown = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self._secrets = [self.key, parts.query, *(value for _, value in urllib.parse.parse_qsl(parts.query))]
        self.host = str(parts.hostname)
        if self.key and parts.scheme == "http" and self.host not in LOCAL:
            log.warning("endpoint=%s remark=the key goes there unencrypted; use https", self.host)
        direct = [urllib.request.ProxyHandler({})] if self.host in LOCAL else []
        self._opener = urllib.request.build_opener(_NoRedirect, *direct)

    def ask(self, messages: list[dict[str, str]]) -> ChatAnswer:
        """The model's answer. Raises ReportRefused where this request alone is not taken, UserError where the endpoint
        cannot be used, or has not answered after all attempts."""
        for attempt in range(self.retries + 1):
            try:
                return self._once(messages)
            except _Again as again:
                if attempt == self.retries or self.stop.is_set():
                    raise UserError(
                        f"endpoint {self._shown}: {self._without_secrets(again.why)}, after {attempt + 1} attempts",
                        "see that the server runs, knows the model and is not overloaded (--timeout, --retries, "
                        "--concurrency); then run the same command again: answers so far are kept",
                    ) from None
                wait = again.after
                if wait is None:
                    wait = min(30.0, self.first_wait * 2**attempt) * random.uniform(0.5, 1.0)
                self._tell(attempt + 1, wait, self._without_secrets(again.why))
                self.stop.wait(wait)
        raise AssertionError("the last attempt returns or raises")

    def _tell(self, attempt: int, wait: float, why: str) -> None:
        """A long wait is told once, not by every question that is under way."""
        said = "endpoint=%s attempt=%d wait=%.1f reason=%s"
        with self._telling:
            loud = wait > _LONG_WAIT and time.monotonic() >= self._told_until
            if loud:
                self._told_until = time.monotonic() + wait
        log.log(logging.WARNING if loud else logging.INFO, said, self.host, attempt, wait, why)

    def _once(self, messages: list[dict[str, str]]) -> ChatAnswer:
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.answer_tokens}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self._address, json.dumps(asked).encode(), headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                content = _read(answer, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
            raise _Again(f"no answer within {self.timeout:g} s" if late else f"it does not answer ({reason})") from None
        return self._answer(content, messages)

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            told = " ".join(error.read(400).decode("utf-8", "replace").split())[:200]
        said = f"HTTP {error.code}" + (f" ({told!r})" if told else "")
        if error.code in _AGAIN or error.code >= 500:
            return _Again(said, _retry_after(error.headers.get("Retry-After")))
        if error.code in (400, 413, 422):
            return ReportRefused(self._without_secrets(said))
        remedy = "see the server's log; answers so far are kept"
        if error.code in (401, 403):
            remedy = f"put the key of this endpoint into the environment variable {KEY} (or name yours with --key-env)"
        elif error.code == 404:
            remedy = f"give the address that ends in /v1, and a model that it serves (asked for: {self.model})"
        elif 300 <= error.code < 400:
            remedy = f"give the address that it points to: {str(error.headers.get('Location'))[:120]}"
        return UserError(f"endpoint {self._shown} answers {self._without_secrets(said)}", self._without_secrets(remedy))

    def _without_secrets(self, text: str) -> str:
        """What a server says may repeat the key, or what the address holds behind its question mark."""
        for secret in sorted({each for each in self._secrets if len(each) > 2}, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    @staticmethod
    def _answer(content: bytes, messages: list[dict[str, str]]) -> ChatAnswer:
        try:
            values = parse_json(content)
            said = values["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            shown = content[:60].decode("utf-8", "replace")
            raise _Again(f"what it sends is no chat completion ({shown!r})") from None
        if not isinstance(said, str):
            said = ""  # a model that only thought, or called a tool
        usage = values.get("usage")
        used: dict[str, Any] = usage if isinstance(usage, dict) else {}
        prompt: Any = used.get("prompt_tokens")
        answer: Any = used.get("completion_tokens")
        if is_count(prompt) and is_count(answer):
            return ChatAnswer(said, prompt, answer, True)
        return ChatAnswer(said, estimated_tokens(messages), -(-len(said) // _PER_TOKEN), False)


def estimated_tokens(messages: list[dict[str, str]]) -> int:
    return -(-sum(len(each["content"]) for each in messages) // _PER_TOKEN)


def _read(answer: Any, until: float) -> bytes:
    """The body, in pieces: a server that drips would hold a plain read for ever."""
    parts, size = [], 0
    while piece := answer.read1(1 << 16):
        parts.append(piece)
        size += len(piece)
        if size > _LARGEST_ANSWER:
            raise _Again(f"its answer has more than {_LARGEST_ANSWER >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)


def _retry_after(text: str | None) -> float | None:
    """Seconds until the server wants to be asked again: a number, or a date."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else None
