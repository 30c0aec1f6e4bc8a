"""A secret is a type: a salt, a key or a token as it goes through the program, and is nowhere shown.

Salts of patients, of names and of exposure certificates are, tokens and headers of a cluster, the key of a language
model's server, the password of a signing key. Where one is used, and there alone, it is revealed (a test lists these
places). An address that holds one is shown by `shown.public`.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import NoReturn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text
from cardialign.data_shards.shown import HIDDEN

_OPENED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Files that are open already: nothing is waited for that nobody writes, as a pipe's name would."""
_LONGEST = 1 << 16
"""Bytes that are read of such a file."""


class Secret:
    """Text that no message, log or table shows: `str`, `repr` and every format of it are `***`, and it is not pickled.

    A data set that is sent to the workers of a build carries its salt revealed (`Folder.__getstate__`).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def of(cls, value: Secret | str) -> Secret:
        return value if isinstance(value, Secret) else cls(value)

    def reveal(self) -> str:
        """What it is. For the place that computes with it or sends it, and for no other."""
        return self._value

    def fits_a_header(self) -> bool:
        """Whether an HTTP header can carry it. Libraries refuse what does not fit with the value in their words."""
        try:
            return not any((byte < 32 and byte != 9) or byte == 127 for byte in self._value.encode("latin-1"))
        except UnicodeEncodeError:
            return False

    def __repr__(self) -> str:
        return HIDDEN

    def __format__(self, form: str) -> str:
        return HIDDEN

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down: hand it on in a file or the environment")

    def _bytes(self) -> bytes:
        return self._value.encode("utf-8", "surrogatepass")

    @classmethod
    def of_file(cls, path: Path, option: str) -> Secret:
        """The one line of a text file, or of what the caller's shell has opened (`<(...)`, /dev/stdin), so that a
        secret need lie in no file. Raises UsageError, in which `option` names what asked for it."""
        try:
            lines = _text(path).strip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{option} {path} cannot be read: {error}", "name a text file in UTF-8") from None
        if len(lines) != 1:
            raise UsageError(f"{option} {path} has {len(lines)} lines", "write the secret into it, on one line")
        return cls(lines[0].strip())


def _text(path: Path) -> str:
    if not path.absolute().as_posix().startswith(_OPENED):
        return read_text(path)
    with open(path, "rb") as file:
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise OSError(f"it has more than {_LONGEST} bytes")
    return content.decode("utf-8-sig")
