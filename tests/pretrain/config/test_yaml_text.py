"""YAML of others: what is read has an end, and a number in it is one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.config import load_config
from cardialign.pretrain.config.yaml_text import LONGEST, read_yaml

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "line 5, column 5: more than 100000 values"),
        ("a: &long '" + "x" * 60_000 + "'\n" + "".join(f"b{i}: *long\n" for i in range(20)), "1048576 characters"),
        ("a: &a [*a]", "column 8: an alias refers to what it is part of"),
        ("a: &a {b: {c: *a}}", "an alias refers to what it is part of"),
        ("a: " + "[" * 3000 + "]" * 3000, "too deep in one another, more than 64"),
        ("\n".join(" " * depth + "a:" for depth in range(80)), "too deep in one another, more than 64"),
        ("a: .inf", "'.inf' cannot be read \\(it is no finite number"),
        ("a: [1, -.inf]", "it is no finite number"),
        ("a: .nan", "it is no finite number"),
        ("a: 1.0e+999", "it is no finite number"),
        ("a: 18446744073709551616", "a whole number of 65 bits"),
        ("a: 0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: " + "x" * LONGEST, f"more than {LONGEST}"),
    ],
)
def test_a_document_beyond_its_limits_is_refused_with_its_place_at_once(text: str, says: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError, match=says):
        read_yaml(text, "file")
    assert time.process_time() - started < 2.0


def test_aliases_and_large_numbers_within_the_limits_are_read() -> None:
    assert read_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}", "file") == {
        "a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}
    }  # fmt: skip
    assert read_yaml("[18446744073709551615, -9223372036854775808, 1.5e+300]", "file") == [2**64 - 1, -(2**63), 1.5e300]


@pytest.mark.parametrize(
    "setting",
    ["optimizer.betas=[0.9, 1]", "optimizer.betas=[1.0, 0.999]", "optimizer.lr=nan", "optimizer.lr=.inf", "seed=2e400",
     "training.global_batch=18446744073709551616", "optimizer.betas=[0.9, inf]", "optimizer.weight_decay=-.inf"],
)  # fmt: skip
def test_a_number_that_no_run_can_have_is_refused(setting: str) -> None:
    with pytest.raises(UsageError):
        load_config("cardialign-demo", [setting])


def test_a_recipe_that_is_no_utf_8_and_one_that_never_ends_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"#" * (1 << 24) + b"#")
    with pytest.raises(UsageError, match="more than 16777216 bytes"):
        load_config(tmp_path / "b.yaml")
