"""Any endpoint that speaks OpenAI's chat form over HTTP (vLLM, llama.cpp, Ollama, a service): asked with patience.

What passes by itself (429, 5xx, a line that breaks, an answer that comes too late) is tried again after a wait that
doubles, or after the time that the server names in `Retry-After`. What does not ends the work with its remedy.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import is_count, parse_json
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import HIDDEN, without_secrets

log = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")
KEY = "CARDIALIGN_LLM_KEY"
"""Environment variable of the key, when the endpoint wants one."""
_LARGEST_ANSWER = 4 << 20
_LONGEST_WAIT = 600.0
_LONG_WAIT = 5.0
"""Seconds; who is to wait longer is told."""
_AGAIN = (408, 409, 425, 429)
NO_KEY = Secret("")
_PER_TOKEN = 4
"""Characters of English text per token, roughly: where a server counts none."""


class ReportRefused(Exception):  # noqa: N818  (an outcome for one report, counted, not an error of the program)
    """The endpoint does not take this one request."""


@dataclass(frozen=True)
class ChatAnswer:
    """What the model said, and what it cost in tokens; counted: by the endpoint, else estimated by length. cut_at: the
    most tokens that it might take, where the endpoint cut it off there; 0: it ended by itself."""

    content: str
    prompt_tokens: int
    answer_tokens: int
    counted: bool
    cut_at: int = 0


_KEPT = "then run the same command again: answers so far are kept"
_BUSY = (
    "see that the server runs, knows the model and is not overloaded (--timeout, --retries, --concurrency); " + _KEPT
)
_ELSEWHERE = (
    "see that --endpoint is the address of the chat form (it ends in /v1 nearly everywhere) and that no page or "
    f"gateway answers in its place; {_KEPT}"
)


class _Again(Exception):  # noqa: N818  (asks for another attempt)
    def __init__(self, why: str, after: float | None = None, remedy: str = _BUSY) -> None:
        self.why, self.after, self.remedy = why, after, remedy
        super().__init__(why)


class _Plainer(Exception):  # noqa: N818  (asks for another attempt, at once and in another form)
    """The endpoint named a parameter that it does not take; `Endpoint.plainer` knows it now."""


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
    key: Secret = NO_KEY
    answer_tokens: int = 512
    timeout: float = 60.0
    retries: int = 6
    first_wait: float = 0.5
    stop: threading.Event = field(default_factory=threading.Event)
    plainer: set[str] = field(default_factory=set, init=False)
    """Parameters that the endpoint turned out not to take: `max_tokens` (a newer name stands for it), `temperature`."""
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
        if not self.model.strip():
            raise UsageError("--model names no model", "name one that the endpoint serves (its /v1/models lists them)")
        if not (self.key.reveal().isascii() and self.key.reveal().isprintable()):
            raise UsageError("the key of the endpoint holds characters that no header can", f"see what {KEY} holds")
        path = parts.path.rstrip("/")
        path += "" if path.endswith("/chat/completions") else "/chat/completions"
        self._address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self._shown = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        told = (parts.query, *(value for _, value in urllib.parse.parse_qsl(parts.query)))
        self._secrets = [self.key, *map(Secret, told)]
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
                        again.remedy,
                    ) from None
                wait = again.after
                if wait is None:
                    wait = min(30.0, self.first_wait * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
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
        most = "max_completion_tokens" if "max_tokens" in self.plainer else "max_tokens"
        asked: dict[str, Any] = {"model": self.model, "messages": messages, most: self.answer_tokens}
        if "temperature" not in self.plainer:
            asked["temperature"] = 0
        try:
            return self._answer(self._sent(asked), messages)
        except _Plainer:  # each of the two parameters is complained of once
            return self._once(messages)

    def _sent(self, asked: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key.reveal()}"
        request = urllib.request.Request(self._address, json.dumps(asked).encode(), headers)  # noqa: S310 - http
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return _unpacked(_read(answer, time.monotonic() + self.timeout), answer.headers)
        except urllib.error.HTTPError as error:
            raise self._judged(error, asked) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
            raise _Again(f"no answer within {self.timeout:g} s" if late else f"it does not answer ({reason})") from None

    def _judged(self, error: urllib.error.HTTPError, asked: dict[str, Any]) -> Exception:
        with error:
            told = " ".join(error.read(400).decode("utf-8", "replace").split())[:200]
        said = f"HTTP {error.code}" + (f" ({told!r})" if told else "")
        if error.code in _AGAIN or error.code >= 500:
            return _Again(said, _retry_after(error.headers.get("Retry-After")))
        if error.code in (400, 422) and (named := _not_taken(told, asked)):
            self.plainer.add(named)
            log.warning("endpoint=%s remark=it does not take %s, asked without it", self.host, named)
            return _Plainer(named)
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
            text = text.replace(secret.reveal(), HIDDEN)
        return text

    def _answer(self, content: bytes, messages: list[dict[str, str]]) -> ChatAnswer:
        try:
            values = parse_json(content)
            choice = values["choices"][0]
            said = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            shown = content[:60].decode("utf-8", "replace")
            raise _Again(f"what it sends is no chat completion ({shown!r})", remedy=_ELSEWHERE) from None
        if isinstance(said, list):  # in parts, as some gateways give it
            texts = [part.get("text") for part in said if isinstance(part, dict)]
            said = "".join(text for text in texts if isinstance(text, str))
        if not isinstance(said, str):
            said = ""  # a model that only thought, or called a tool
        cut_at = self.answer_tokens if choice.get("finish_reason") == "length" else 0
        usage = values.get("usage")
        used: dict[str, Any] = usage if isinstance(usage, dict) else {}
        prompt: Any = used.get("prompt_tokens")
        answer: Any = used.get("completion_tokens")
        if is_count(prompt) and is_count(answer):
            return ChatAnswer(said, prompt, answer, True, cut_at)
        return ChatAnswer(said, estimated_tokens(messages), -(-len(said) // _PER_TOKEN), False, cut_at)


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


def _unpacked(body: bytes, headers: http.client.HTTPMessage) -> bytes:
    """The body, unpacked where a gateway packed it unasked. Raises _Again for one that is too large, or broken."""
    if headers.get("Content-Encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its first bytes
    try:
        content = unpack.decompress(body, _LARGEST_ANSWER + 1)
    except zlib.error as error:
        raise _Again(f"what it sends cannot be unpacked ({error})") from None
    if len(content) > _LARGEST_ANSWER:
        raise _Again(f"its answer has more than {_LARGEST_ANSWER >> 20} MiB")
    return content


def _not_taken(told: str, asked: dict[str, Any]) -> str:
    """The parameter of `asked` that the endpoint says it does not take, and that can be said otherwise; "" for none.
    Services do so for models that reason: https://platform.openai.com/docs/guides/reasoning."""
    if "max_tokens" in asked and "max_completion_tokens" in told:
        return "max_tokens"
    return (
        "temperature"
        if "temperature" in asked and re.search(r"temperature.*support|support.*temperature", told)
        else ""
    )


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
