"""A secret is in no text that is made of it, and in no file."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

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
