"""A secret is in no text that is made of it, and in no file."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.secret import Secret

PLAIN = "pl4nted-s3cret"


def test_no_text_of_a_secret_shows_it_and_nothing_writes_it_down() -> None:
    secret = Secret(PLAIN)
    told = [str(secret), repr(secret), f"{secret}", f"{secret:>20}", f"{secret!r} {secret!s}", str([secret])]
    assert not any(PLAIN in text for text in told) and secret.reveal() == PLAIN
    for write in (pickle.dumps, json.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            write(secret)
    assert secret == Secret(PLAIN) and secret != Secret("another") and secret != PLAIN


def opened(content: bytes) -> Path:
    """What `<(...)` of a shell is to the command that gets it."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return Path(f"/dev/fd/{reading}")


def test_a_secret_comes_from_a_file_or_from_what_the_shell_has_opened(tmp_path: Path) -> None:
    (tmp_path / "salt").write_bytes(b"\xef\xbb\xbf" + PLAIN.encode() + b"\r\n")
    assert Secret.of_file(tmp_path / "salt", "--salt-file") == Secret(PLAIN)
    assert Secret.of_file(opened(PLAIN.encode() + b"\n"), "--salt-file") == Secret(PLAIN)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", opened(b"one\ntwo\n"), opened(b""), opened(b"\xff\xfe"), tmp_path / "nothing"):
        with pytest.raises(UsageError, match=r"^--salt-file "):
            Secret.of_file(path, "--salt-file")
