"""The Jobs API of a Ray cluster over HTTP (https://docs.ray.io/en/latest/cluster/running-applications/job-submission),
with its failures as sentences.

Plain requests, so that `status` and `list` need no import of Ray. The token is Ray's own: RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token; further headers come from RAY_JOB_HEADERS, a JSON object. None of them is
ever an option, because command lines can be read by others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import parse_json
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import public

SECONDS = 60.0
"""How long an answer may take; an upload has ten times as long."""
LARGEST_ANSWER = 1 << 28
"""Bytes of one answer: the log of a job is the longest."""
OLDEST = (2, 60)
"""Of Ray on the cluster: what this package is made for."""
TOKEN, TOKEN_PATH, HEADERS = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS"
REDIRECTS = (301, 302, 303, 307, 308)
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2"""
RAY_ITSELF = ("ray://", "auto", "local")
NO_DASHBOARD = (
    "give the address of the dashboard (http://HOST:8265, a KubeRay service, or a port-forward to it); the head node "
    "must run with it: `ray start --head --dashboard-host=0.0.0.0`, with ray[default] installed"
)


class Unanswered(Exception):  # noqa: N818 - an answer that its caller may expect
    """The cluster answered with another status than 200."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(f"{status}: {text}")


@dataclass
class JobsClient:
    """One cluster. address: of its dashboard. ca: file of certificates that sign its own."""

    address: str
    ca: Path | None = None
    headers: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    ray_version: str = ""
    session: str = ""
    """Name of the cluster's session: the folder of its logs on the head node."""

    def __post_init__(self) -> None:
        self._opener = urllib.request.OpenerDirector()  # not the usual one: a redirect would carry the token elsewhere
        handlers: list[Any] = [
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ]
        if self.address.startswith("https://"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(self.ca)))
        for handler in handlers:
            self._opener.add_handler(handler)

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return self._json(self._ask("GET", path))

    def post(self, path: str, values: Mapping[str, Any] | None = None) -> Any:
        return self._json(self._ask("POST", path, None if values is None else json.dumps(values).encode()))

    def text(self, path: str) -> str:
        return self._ask("GET", path).decode("utf-8", "replace")

    def has(self, path: str) -> bool:
        """Whether something is at `path`."""
        try:
            self._ask("GET", path)
        except Unanswered as answer:
            if answer.status != 404:
                raise self._refused(answer) from None
            return False
        return True

    def put(self, path: str, content: bytes) -> None:
        self._ask("PUT", path, content, 10 * SECONDS)

    def _ask(self, method: str, path: str, content: bytes | None = None, seconds: float = SECONDS) -> bytes:
        kind = "application/zip" if method == "PUT" else "application/json"
        told = {name: value.reveal() for name, value in self.headers.items()}
        headers = {**told, **({"Content-Type": kind} if content is not None else {})}
        request = urllib.request.Request(  # noqa: S310 - the opener has handlers of http and https alone
            self.address + path, data=content, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                body: bytes = answer.read(LARGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            if error.code in REDIRECTS:
                there = public(urllib.parse.urljoin(self.address + path, error.headers.get("Location", "")))
                raise UserError(
                    f"{public(self.address)} redirects to {there}", "give that --address, if it is yours"
                ) from None
            with contextlib.closing(error):
                answered = Unanswered(error.code, error.read(100_000).decode("utf-8", "replace"))
            if error.code in (401, 403, 407) or error.code >= 502:
                raise self._refused(answered) from None
            raise answered from None
        except http.client.HTTPException:
            raise UserError(f"{public(self.address)} does not speak HTTP", NO_DASHBOARD) from None
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from None
        if len(body) > LARGEST_ANSWER:
            raise UserError(
                f"{public(self.address)} answers with more than {LARGEST_ANSWER >> 20} MiB, which is too much",
                f"no dashboard of Ray says so much; {NO_DASHBOARD}",
            )
        return body

    def _json(self, content: bytes) -> Any:
        try:
            return parse_json(content)
        except (ValueError, RecursionError):
            raise UserError(
                f"{public(self.address)} does not answer as the dashboard of a Ray cluster does", NO_DASHBOARD
            ) from None

    def _unreachable(self, error: Exception) -> UserError:
        reason = getattr(error, "reason", None) or error
        where = public(self.address)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return UserError(
                f"the certificate of {where} is not trusted: {reason.verify_message}",
                "give the certificates of whoever signed it with --ca FILE (or SSL_CERT_FILE); check the host's name",
            )
        if isinstance(reason, ssl.SSLError):
            return UserError(f"{where} does not speak TLS: {reason.reason}", "is it http:// that you mean?")
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return UserError(f"no Ray cluster answers at {where}: {told}", f"is its head node up? {NO_DASHBOARD}")

    def _refused(self, answer: Unanswered) -> UserError:
        where, said = public(self.address), " ".join(answer.text.split())[:200]
        if answer.status == 401:
            return UserError(
                f"{where} wants a token, and none was sent",
                f"set {TOKEN_PATH} to the file that holds the cluster's token (or {TOKEN} to the token); a proxy "
                f"before it may want headers: {HEADERS}",
            )
        if answer.status in (403, 407):
            return UserError(
                f"{where} does not accept the token: {said}",
                f"it comes from {_token_from()}; take the token of this cluster (`ray get-auth-token` on its head)",
            )
        return UserError(
            f"{where} answers with {answer.status}: {said}",
            "the head node may be starting, or a proxy before it does not reach it: try again in a minute",
        )


def connect(address: str | None, ca: Path | None = None) -> JobsClient:
    """A cluster that answers. address: None means RAY_ADDRESS.

    Raises UsageError for an address of another kind; UserError when nothing answers there, without the right token, or
    when it is no Ray of OLDEST or newer.
    """
    if ca is not None and not ca.is_file():
        raise UsageError(f"--ca {ca} is no file", "give a file of certificates in PEM form")
    client = JobsClient(dashboard_address(address), ca, _headers())
    try:
        version = client.get("/api/version")
    except Unanswered as answer:
        raise UserError(
            f"{public(client.address)} has no Jobs API (it answers {answer.status})", NO_DASHBOARD
        ) from None
    if not isinstance(version, dict) or "ray_version" not in version:
        raise UserError(f"{public(client.address)} is no dashboard of a Ray cluster", NO_DASHBOARD)
    client.ray_version, client.session = str(version["ray_version"]), str(version.get("session_name", ""))
    return client


def check_version(client: JobsClient) -> None:
    """Raises UserError when the cluster's Ray is older than what the package is made for."""
    numbers = tuple(int(part) for part in client.ray_version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UserError(
            f"the cluster at {public(client.address)} runs Ray {client.ray_version}; this package wants {wanted}",
            "start the cluster from an image with the versions of constraints.txt",
        )


def dashboard_address(address: str | None) -> str:
    """`address`, else RAY_ADDRESS, as the URL of a dashboard. Raises UsageError for other kinds of addresses."""
    given = (os.environ.get("RAY_ADDRESS", "") if address is None else address).strip()
    named = "--address" if address is not None else "RAY_ADDRESS"
    if not given:
        raise UsageError(
            "no cluster is named", "give --address http://HOST:8265, the cluster's dashboard, or set RAY_ADDRESS to it"
        )
    whole = given if "://" in given else f"http://{given}"
    if public(whole) != whole:
        raise UsageError(
            f"{named} holds a user, a password or a token ({public(whole)})",
            f"give it without; a token comes from {TOKEN_PATH}, headers of a proxy from {HEADERS}",
        )
    if given.startswith(RAY_ITSELF):
        raise UsageError(
            f"{named} {given!r} is an address of Ray itself; jobs are given to its dashboard",
            "give for example http://HOST:8265 (on the head node: http://127.0.0.1:8265)",
        )
    with contextlib.suppress(ValueError):  # a bracket that is not closed, a port of letters
        parts = urllib.parse.urlsplit(whole)
        readable = parts.path.isascii() and not any(letter.isspace() for letter in given)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and readable:
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    raise UsageError(f"{named} {given!r} is no http:// or https:// address", "give for example http://HOST:8265")


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca {ca} holds no certificates: {error}", "give a file in PEM form") from None


def _headers() -> dict[str, Secret]:
    token, given = _token(), os.environ.get(HEADERS, "").strip()
    headers = {"Authorization": Secret(f"Bearer {token.reveal()}")} if token else {}
    if given:
        try:
            more = parse_json(given)
            if not isinstance(more, dict) or not all(isinstance(value, str) for value in more.values()):
                raise ValueError(HEADERS)
        except ValueError:
            raise UsageError(f"{HEADERS} is no JSON object of texts", 'write {"NAME": "VALUE"}') from None
        if any(name.lower() == "authorization" for name in more):
            headers = {}
        headers |= {name: Secret(value) for name, value in more.items()}
        if not all(HEADER_NAME.fullmatch(name) and value.fits_a_header() for name, value in headers.items()):
            raise UsageError(f"{HEADERS} holds what no header can carry", "name and value are letters of one line")
    return headers


def _token() -> Secret:
    given, path = os.environ.get(TOKEN, "").strip(), _token_path()
    try:
        token = Secret(given or path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        if TOKEN_PATH not in os.environ:
            return Secret("")
        told = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"{TOKEN_PATH} names {path}, which cannot be read: {told}", "give the token's file") from None
    if not token.fits_a_header():
        raise UsageError(
            f"the token of {TOKEN if given else path} holds a line break, or another letter that no token has",
            "take the token of this cluster alone (`ray get-auth-token` on its head)",
        )
    return token


def _token_path() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token").expanduser()


def _token_from() -> str:
    return TOKEN if os.environ.get(TOKEN) else str(_token_path())
