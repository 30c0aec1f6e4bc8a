"""`cardialign bench compile` prints what the compiler made, and fails when nothing was compiled."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is for Linux only")


def test_one_variant_gives_one_row(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("bench", "compile", "--arch", 80, "--name", "loss gradient d=512")
    assert answer.code == 0
    assert answer.json["variants"] == 1 and answer.json["refused"] == {}
    assert answer.json["table"][2].startswith("| loss gradient d=512 bfloat16 ramp, strips | sm_80 |")


def test_no_such_variant_is_a_failure_that_says_so(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("bench", "compile", "--name", "no such kernel", plain=True)
    assert answer.code == 1
    assert "no kernel variant has such a name" in answer.out
