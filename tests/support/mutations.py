"""Files as somebody else may have left them: a seeded mutation of their bytes, of their numbers, or of their values."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64,
    -(2**63), 10**30, "", "x", "../../etc/passwd", "/dev/zero", "\x1b]0;x\x07", "\u202e", "\ud800", "=1+1", "0" * 5000,
    [], {}, [[]], {"": {}}, [None], "nan", "1e999", "s3://x/y", "file:///etc/passwd",
)  # fmt: skip
WORDS = (
    b"nan", b"inf", b"-1", b"0", b"1e999", b"9" * 30, b"9" * 4400, b"18446744073709551616", b"true", b"null", b"[]",
    b"{}", b"[" * 90 + b"]" * 90, b"[" * 3000, b"-", b"\xff\xfe", b"\x00", b"\x1b[2J", b"\xe2\x80\xae", b"&a [*a]",
    b"!!python/object:os.system x", b"~", b"/", b"../x", b"x:9999999999", b"+4294967296", b"1(9999999999)/mV",
    b'"', b"#",
)  # fmt: skip
_NUMBER = re.compile(rb"[0-9]+(?:\.[0-9]+)?")
_LINES = re.compile(rb"\n")


def mutated(content: bytes, random_: random.Random) -> bytes:
    """Other bytes than `content`."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [_flip, _flip, _bytes, _cut, _grow, _without, _twice, _moved]
    ways += [_number, _number, _word, _line]
    values = _values(content)
    if values is not None:
        ways += [_value] * 6 + [_key_again]
    for _ in range(20):
        changed = random_.choice(ways)(content, random_)
        if changed != content:
            return changed
    return content + b"\0"


def _place(content: bytes, random_: random.Random) -> int:
    """Anywhere, and often near the beginning, where headers are."""
    return random_.randrange(max(1, min(len(content), random_.choice((64, 512, len(content) or 1)))))


def _flip(content: bytes, random_: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    changed[_place(changed, random_)] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _bytes(content: bytes, random_: random.Random) -> bytes:
    at, size = _place(content, random_), random_.choice((1, 2, 4, 8, 64))
    return content[:at] + random_.choice((b"\0", b"\xff", random_.randbytes(1))) * size + content[at + size :]


def _cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.choice((0, 1, len(content) // 2, max(0, len(content) - 1), _place(content, random_)))]


def _grow(content: bytes, random_: random.Random) -> bytes:
    return content + random_.choice((b"\0", b"\n", b"x", content[:100], content, b"\0" * 4096))


def _without(content: bytes, random_: random.Random) -> bytes:
    at = _place(content, random_)
    return content[:at] + content[at + random_.choice((1, 4, 100)) :]


def _twice(content: bytes, random_: random.Random) -> bytes:
    at, size = _place(content, random_), random_.choice((1, 8, 100))
    return content[: at + size] + content[at : at + size] + content[at + size :]


def _moved(content: bytes, random_: random.Random) -> bytes:
    a, b = sorted((_place(content, random_), _place(content, random_)))
    return content[:a] + content[b : b + 16] + content[a:]


def _token(content: bytes, pattern: re.Pattern[bytes], random_: random.Random) -> tuple[int, int]:
    found = list(pattern.finditer(content[:100_000]))
    if not found:
        at = _place(content, random_)
        return at, at + 1
    return random_.choice(found).span()


def _number(content: bytes, random_: random.Random) -> bytes:
    start, stop = _token(content, _NUMBER, random_)
    return content[:start] + random_.choice(WORDS) + content[stop:]


def _word(content: bytes, random_: random.Random) -> bytes:
    at = _place(content, random_)
    return content[:at] + random_.choice(WORDS) + content[at:]


def _line(content: bytes, random_: random.Random) -> bytes:
    lines = _LINES.split(content)
    k = random_.randrange(len(lines))
    lines[k:k] = random_.choice(([lines[-1 - k]], [lines[k]] * 2, [b""], [random_.choice(WORDS)]))
    return b"\n".join(lines)


def _values(content: bytes) -> Any:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict | list) and values else None


def _value(content: bytes, random_: random.Random) -> bytes:
    """One value of a JSON text replaced, or left out."""
    values = here = _values(content)
    while True:
        keys: list[Any] = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = random_.choice(keys)
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner or random_.random() < 0.2:
            break
        here = inner
    if random_.random() < 0.15:
        del here[key]
    else:
        here[key] = random_.choice(NASTY)
    return json.dumps(values).encode()


def _key_again(content: bytes, random_: random.Random) -> bytes:
    values = _values(content)
    if not isinstance(values, dict):
        return content
    key = random_.choice(list(values))
    return content.rstrip()[:-1] + b", " + json.dumps({key: random_.choice(NASTY)}).encode()[1:]
