"""What of outside text, and of addresses, may be seen: on a terminal, in a cell of a table, in a message, log or file.

`shown` is for every text that comes from data or a library, `quoted` for a word of it in a sentence, `cell` for a cell
of a CSV, `public` for one address, `without_secrets` for a text in which addresses and secrets may stand; `between` for
an interval that may not be there.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"pass|pwd|token|secret|credential|auth|key|odbc_connect|salt|signature|^sig$|^x-(?:amz|goog)-|^s[eprvkt]$|"
    r"^policy$",
    re.IGNORECASE,
)
"""Names of parameters of an address, and of variables of the environment, whose values are nobody's business; those of
signed addresses (S3, Google, Azure) among them."""
SECRET_QUERY = re.compile(
    r"pass|pwd|token|secret|credential|signature|^sig$|access_?key|account_?key|api_?key|odbc_connect", re.IGNORECASE
)
"""Of these, the names that alone make an address one with a secret."""
_NO_SECRET = re.compile(
    r"(?:_PATH|_FILE|_DIR|_MODE|_SOCK|_ID|_URL|_URI|AUTHORITY|KEY(?:BOARD|MAP)\w*|"
    r"(?:^|_)AUTHORS?(?:_NAME|_EMAIL|_DATE)?|(?:^|_)TOKENI[SZ]ERS?(?:_NAME|_PARALLELISM)?)$",
    re.IGNORECASE,
)
_KEY_OF_DATA = re.compile(
    r"^(?:(?:record|patient|study|subject|row|primary|foreign|sort|group|join|index|label|cache|object)_?)?keys?$",
    re.IGNORECASE,
)
"""Names of variables that may well hold the key of a record or of a table: hidden only where it looks drawn."""
_DRAWN = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])\S{20,}|[0-9a-fA-F]{32,}")
_TOKEN_AS_USER = ("http", "https", "webdav", "webdavs", "dav", "davs")
"""Protocols whose servers take a token in the place of a user's name: one that stands alone is no name."""
_SHORTEST = 6
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Control characters (a tab is none that harms), what turns the direction of writing or cannot be seen, and bytes of a
name that are no UTF-8."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,3}[^\s'\"<>|`]+")
_FOLDED = re.compile(r"(\b(?!models:)[A-Za-z][A-Za-z0-9+.-]+:/)[^\s/'\"<>]+@")
"""A user in an address whose slashes a `Path` has folded; `models:/NAME@ALIAS` is MLflow's own."""
_FORMULA = ("=", "+", "-", "@", "\t")


def between(low: float, high: float, form: str = "+.3f") -> str:
    """The ends of an interval in the format `form`, as `+0.010 to +0.032`; "n/a" where one is NaN: there is none.

    No end is a negative zero, here as elsewhere (`:+z.3f`): a difference of nothing has no direction.
    """
    form = form.replace(".", "z.", 1)
    return f"{low:{form}} to {high:{form}}" if math.isfinite(low) and math.isfinite(high) else "n/a"


def shown(text: str, *, lines: bool = False) -> str:
    """Text of data, safe on a terminal and without secrets: what would move the cursor, hide or forge text is
    written as `\\x1b`.

    lines: the text may have several lines, which stay.
    """
    if lines:
        return "\n".join(map(shown, text.split("\n")))
    plain = _UNSAFE.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)
    return without_secrets(plain)


def quoted(text: str) -> str:
    """A word of data in a sentence: `shown` between quotation marks, and no longer than needed."""
    return without_secrets(repr(text if len(text) <= 60 else f"{text[:60]}..."))


def cell(text: str) -> str:
    """A cell of a table that neither a terminal nor a spreadsheet takes for a command."""
    plain = shown(text)
    return f"'{plain}" if plain.startswith(_FORMULA) and not _is_number(plain) else plain


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|nan)", text) is not None


def public(address: str) -> str:
    """The address without user, password and secret parameters: what may be shown and stored."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    rest, mark, parameters = _parameters(rest)
    if scheme.partition("+")[0] not in ("sqlite", "file"):
        before, at, behind = parameters.rpartition("@")
        if at and "=" not in before:  # a password with an unescaped question mark
            return public(f"{scheme}://{behind}")
        rest = rest.rpartition("@")[2]  # an unescaped password may hold any character, / included
    kept = [part for part in _split(mark, parameters) if part and not SECRET_NAME.search(part.partition("=")[0])]
    return f"{scheme}://{rest}" + (f"{mark}{'&'.join(kept)}" if kept else "")


def _parameters(rest: str) -> tuple[str, str, str]:
    """What stands before the first question mark, or before a fragment or a part of the path that holds parameters; the
    mark; and these."""
    found = re.search(r"\?|[#;](?=[^#;]*=[^@]*$)", rest)
    return (rest, "", "") if found is None else (rest[: found.start()], found.group(), rest[found.end() :])


def _split(mark: str, parameters: str) -> list[str]:
    """Each with its value, in which semicolons may stand behind a question mark (odbc_connect=DRIVER=x;PWD=y)."""
    return re.split("[&#;]" if mark == ";" else "[&#]", parameters)


def has_secret(address: str) -> bool:
    """Whether an address holds a password, a key or a signature."""
    scheme, _, rest = address.partition("://")
    rest, _, parameters = _parameters(rest)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and ":" in user and scheme.partition("+")[0] not in ("sqlite", "file"):
        return True
    if at and scheme.lower() in _TOKEN_AS_USER:
        return True
    return any(SECRET_QUERY.search(part.partition("=")[0]) for part in re.split("[&;#]", parameters))


def without_secrets(text: str, address: str = "") -> str:
    """`text`, of whatever library, without the secrets of `address`, of any other address in it, and of the variables
    of the environment."""
    text = text.replace(address, public(address)) if address else text
    for secret in sorted(secrets_of(address) | _of_environment(), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if ":/" not in text:
        return text
    text = _ADDRESS.sub(lambda found: _hidden(found.group()), text)
    text = re.sub(r"(?<=://)[^\s/'\"<>]*@", "", text)
    return _FOLDED.sub(r"\1", text)


def _hidden(address: str) -> str:
    """As it stands in a sentence: the values of its secret parameters only."""
    before, mark, parameters = _parameters(address)
    before = re.sub(r"(:/{1,3}[^/@\s:]*):[^/@\s]*@", rf"\1:{HIDDEN}@", before)
    if not mark:
        return before
    parts = re.split("([&;#])", parameters)
    told = [
        f"{part.partition('=')[0]}={HIDDEN}" if "=" in part and SECRET_NAME.search(part.partition("=")[0]) else part
        for part in parts
    ]
    return f"{before}{mark}{''.join(told)}"


def secrets_of(address: str) -> set[str]:
    """Passwords, tokens and signatures of an address that may turn up in a message, as they were written and as they
    are sent."""
    found: set[str] = set()
    _, _, rest = address.partition("://")
    if not address.startswith(("sqlite:", "file:")) and "@" in rest:
        user, colon, password = rest.rpartition("@")[0].partition(":")
        found.add(password if colon else user)
    for part in _split(*_parameters(rest)[1:]):
        name, _, value = part.partition("=")
        if SECRET_NAME.search(name):
            found.add(value)
    found |= {urllib.parse.unquote(secret) for secret in found} | {
        piece for secret in found for piece in re.split(r"[/?#@]", secret) if len(piece) > 3
    }  # a parser that stumbles over an unescaped character quotes the piece before it
    return {secret for secret in found if len(secret) > 2}


def _of_environment() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and SECRET_NAME.search(name)
        and not _NO_SECRET.search(name)
        and not (_KEY_OF_DATA.search(name) and not _DRAWN.fullmatch(value))
        and not value.startswith(("/", "~", "./"))
        and not value.isdigit()
    }
