"""A file or folder is whole or not there at all, and what differs from a list of files is found."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.array_files import load_array, load_arrays
from cardialign.data_shards.errors import disk_error
from cardialign.data_shards.files import (
    Difference,
    FileFacts,
    commit_file,
    commit_folder,
    difference,
    differences,
    facts_below,
    is_shallow,
    parse_json,
    read_bytes,
    read_json,
    read_json_object,
    temporary_path,
    write_json,
)


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise RuntimeError("power cut")


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_could_not_be_written_leaves_what_was_there_before_and_nothing_else(
    tmp_path: Path, durable: bool
) -> None:
    commit_file(tmp_path / "a", lambda path: path.write_bytes(b"whole"), durable=durable)
    for name in ("a", "b"):
        with pytest.raises(RuntimeError, match="power cut"):
            commit_file(tmp_path / name, half, durable=durable)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole"}


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_appears_with_all_that_is_in_it_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    with pytest.raises(RuntimeError, match="power cut"), commit_folder(tmp_path / "a", durable=durable) as folder:
        half(folder / "x")
    assert list(tmp_path.iterdir()) == []
    with commit_folder(tmp_path / "above" / "a", durable=durable) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "x").write_bytes(b"1")
        assert not (tmp_path / "above" / "a").exists()
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["a"]
    assert (tmp_path / "above" / "a" / "inside" / "x").read_bytes() == b"1"


def test_a_folder_of_somebody_who_was_faster_stands(tmp_path: Path) -> None:
    with pytest.raises(OSError), commit_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"late")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_bytes(b"first")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "x").read_bytes() == b"first"


def test_threads_that_make_the_same_file_do_not_write_into_each_others(tmp_path: Path) -> None:
    names = [temporary_path(tmp_path / "a")]
    thread = threading.Thread(target=lambda: names.append(temporary_path(tmp_path / "a")))
    thread.start()
    thread.join()
    assert len(set(names)) == 2 and all(name.match(f".a.*.{os.getpid()}.*.tmp") for name in names)


def test_json_is_committed_and_read_again_and_anything_else_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": 1}, sort_keys=True, ensure_ascii=False)
    assert (tmp_path / "a.json").read_bytes() == '{"a": 1, "b": "é"}'.encode()
    assert read_json(tmp_path / "a.json") == {"a": 1, "b": "é"}
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    assert [read_json(tmp_path / f"{name}.json") for name in ("list", "half", "bytes", "absent")] == [None] * 4


def test_what_differs_from_a_list_is_told_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("same", "grown", "deep/changed", "gone", "list.json"):
        (tmp_path / name).write_text(name)
    listed = facts_below(tmp_path, but=("list.json",))
    assert list(listed) == ["deep/changed", "gone", "grown", "same"]
    assert asdict(listed["same"]) == {
        "sha256": "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5",
        "bytes": 4,
    }
    assert differences(tmp_path, listed, but=("list.json",)) == []
    (tmp_path / "grown").write_text("grown!")
    (tmp_path / "deep/changed").write_text("deep/CHANGED")
    (tmp_path / "gone").unlink()
    (tmp_path / "deep/new").write_text("?")
    assert differences(tmp_path, listed, but=("list.json",)) == [
        Difference("deep/changed", "content", 12, 12),
        Difference("gone", "missing", 0, 4),
        Difference("grown", "size", 6, 5),
        Difference("deep/new", "unlisted", 1),
    ]


def test_a_list_without_sizes_is_compared_by_content_and_a_quick_look_by_size_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert difference(tmp_path / "a", FileFacts("0" * 64)) == Difference("a", "content", 1)
    assert difference(tmp_path / "a", FileFacts("0" * 64), quick=True) is None
    assert difference(tmp_path / "a", FileFacts("0" * 64, 2), quick=True) == Difference("a", "size", 1, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_under_an_array_is_called_full(tmp_path: Path) -> None:
    """numpy says `131072 requested and 0 written` then, without a number of the error."""
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        np.zeros(1 << 17, dtype=np.uint8).tofile(file)
    assert "disk full while writing" in str(disk_error(caught.value, tmp_path / "a.npy"))
    assert "disk full" not in str(disk_error(PermissionError(13, "Permission denied"), tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 65 + "]" * 65, "nested too deeply, more than 64"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' stands twice"),
        ("18446744073709551616", "more than 64 bits"),
        ('{"a": -9223372036854775809}', "more than 64 bits"),
        ("9" * 5000, "more than 64 bits"),
        ("[1e999]", "no float holds the number 1e999"),
        (b'"\xff"', "utf-8"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_beyond_its_limits_is_refused_in_words(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_json_within_its_limits_is_what_it_says() -> None:
    assert parse_json("[" * 64 + "]" * 64) is not None
    assert parse_json('{"a": [18446744073709551615, -9223372036854775808, 1.5e300, "01234567890123456789"]}') == {
        "a": [2**64 - 1, -(2**63), 1.5e300, "01234567890123456789"]
    }
    assert parse_json('"' + "[" * 1000 + '"') == "[" * 1000, "brackets in a text are none"
    assert is_shallow({"a": [{}]}, 3) and not is_shallow({"a": [{}]}, 2)


def test_what_is_no_regular_file_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for read in (read_bytes, read_json_object, load_array, lambda path: load_arrays(path)):
        with pytest.raises(OSError, match="no regular file"):
            read(pipe)
        with pytest.raises(OSError, match="no regular file"):
            read(tmp_path)
    assert read_json(pipe) is None
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "a.json", 8) == {"a": 1}
    with pytest.raises(OSError, match="more than 7 bytes"):
        read_json_object(tmp_path / "a.json", 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content.replace(b"(3, 4)", b"(3, 9)"),
        lambda content: content.replace(b"(3, 4)", b"(-3,-4)"),
        lambda content: content.replace(b"'<f8'", b"'|O8'"),
        lambda content: content[:40],
        lambda content: b"x" + content,
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_an_array_is_exactly_what_its_header_claims_or_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], mapped: bool
) -> None:
    whole = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", whole)
    np.savez_compressed(tmp_path / "a.npz", whole=whole, other=np.zeros(1 << 20))
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy", mapped=mapped), whole)
    assert list(load_arrays(tmp_path / "a.npz", ["whole"])) == ["whole"]
    (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(ValueError, match=r"array|claims"):
        load_array(tmp_path / "a.npy", mapped=mapped)
