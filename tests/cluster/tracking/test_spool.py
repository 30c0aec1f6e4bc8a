"""The spool: complete lines, once each, across restarts of reader and writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cardialign.cluster.tracking.spool import Cursor, SpoolReader, append_line
from cardialign.data_shards.files import read_json, write_json


def steps(reader: SpoolReader) -> list[int]:
    """Read and take everything new; the steps handed out."""
    seen = []
    while lines := reader.read(limit=3):
        reader.take(lines)
        seen += [line.step for line in lines if line.values]
    return seen


def write_steps(path: Path, numbers: range) -> None:
    for number in numbers:
        append_line(path, {"step": number, "loss": 1 / (number + 1)})


def rewrite(path: Path, numbers: range) -> None:
    """What a resumed training loop does: a new file that ends at the checkpoint, in place of the old one."""
    temporary = path.with_name("new")
    write_steps(temporary, numbers)
    os.replace(temporary, path)


def test_each_line_is_handed_out_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = SpoolReader(path)
    assert steps(reader) == []
    write_steps(path, range(7))
    assert steps(reader) == list(range(7))
    write_steps(path, range(7, 9))
    assert steps(reader) == [7, 8]
    assert steps(reader) == []


def test_lines_that_were_not_taken_are_handed_out_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(5))
    cursor = Cursor()
    assert len(SpoolReader(path, cursor).read()) == 5
    assert steps(SpoolReader(path, cursor)) == list(range(5))


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 3, "loss": 0.5}) + "\n"
    path.write_text(whole[:9])
    reader = SpoolReader(path)
    assert steps(reader) == []
    path.write_text(whole)  # same inode: the writer went on
    assert steps(reader) == [3]


def test_damaged_line_is_skipped_and_the_rest_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(2))
    with path.open("a") as file:
        file.write('{"step": 2, "lo\n[1, 2]\n')
    write_steps(path, range(3, 5))
    assert steps(SpoolReader(path)) == [0, 1, 3, 4]


def test_a_resumed_run_hands_out_only_new_steps_although_its_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(13))
    reader = SpoolReader(path)
    assert steps(reader) == list(range(13))
    rewrite(path, range(10))  # resumed from the checkpoint of step 10 ...
    write_steps(path, range(10, 20))  # ... and already beyond the old end when the reader looks again
    assert steps(reader) == list(range(13, 20))


def test_cursor_survives_a_restart_of_the_reader(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.jsonl", tmp_path / "cursor.json"
    write_steps(path, range(4))
    reader = SpoolReader(path)
    assert steps(reader) == [0, 1, 2, 3]
    write_json(notes, vars(reader.cursor))
    write_steps(path, range(4, 6))
    restored = read_json(notes)
    assert restored is not None
    assert steps(SpoolReader(path, Cursor(**restored))) == [4, 5]


def test_write_json_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2} and [p.name for p in tmp_path.iterdir()] == ["state.json"]
    path.write_text("{")
    assert read_json(path) is None
