"""`shards plan` says what a build will say, of the first records, and leaves nothing behind."""

from __future__ import annotations

import argparse
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.commands.shards import build, plan
from tests.support.wfdb_files import ecg_counts, write_record


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven records of 250 Hz, two of them of 5 s, one whose signal file is cut off; a table that knows five."""
    root = tmp_path / "archive"
    for number in range(7):
        counts = ecg_counts(1250 if number in (1, 4) else 2500, seed=number, rate=250)
        write_record(root / f"r{number}", counts, rate="250")
    (root / "r5.dat").write_bytes(b"\0" * 100)
    rows = [f"r{n},{'F' if n % 2 else 'M'},{40 + n},{'AF' if n < 2 else 'SR'}" for n in range(5)]
    (root / "table.csv").write_text("\n".join(["record,sex,age,rhythm", *rows]) + "\n")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return root


def words(root: Path, command: str) -> tuple[Any, ...]:
    columns = ("--key-column", "record", "--sex-column", "sex", "--age-column", "age", "--labels-column", "rhythm")
    return ("shards", command, "wfdb", "--root", root, "--table", root / "table.csv", *columns)


def options() -> set[str]:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return {flag.removeprefix("--") for action in parser._actions for flag in action.option_strings}


def test_its_figures_are_those_of_the_set_that_a_build_makes_and_nothing_is_left(
    cardialign: Callable[..., Any], archive: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.iterdir()}
    planned = cardialign(*words(archive, "plan"), "--count", "--out", tmp_path / "three.png").json
    assert {path: path.stat().st_mtime_ns for path in archive.iterdir()} == before
    assert not list((tmp_path / "scratch").iterdir())
    assert planned["records"] == 6 and planned["original_sampling_rate"] == {"250": 6}
    assert planned["valid_seconds"]["padded_records"] == 2 and planned["valid_seconds"]["least"] == 5
    assert list(planned["turned_away"]) == list(planned["rejected"]) and "r5" in str(planned["turned_away"])
    assert planned["whole"]["entries"] == 7 and planned["whole"]["records"] == 6
    assert planned["whole"]["joins"] == {"rows of the table": "5 of 7"}
    picture = (tmp_path / "three.png").read_bytes()
    assert picture[1:4] == b"PNG"
    width, height = struct.unpack(">II", picture[16:24])
    assert height > 1.5 * width, "three papers, one below the other"
    assert cardialign(*words(archive, "build"), "--out", tmp_path / "set", "--workers", 1).code == 0
    made = cardialign("shards", "stats", tmp_path / "set").json
    for name in ("records", "patients", "rejected", "bytes", "labels", "age_years", "sex", "quality", "valid_seconds"):
        assert planned[name] == made[name], name


def test_it_reads_as_many_as_asked_for_and_says_them_to_a_person(cardialign: Callable[..., Any], archive: Path) -> None:
    answer = cardialign(*words(archive, "plan"), "--limit", 2, plain=True)
    said = dict(line.split(maxsplit=1) for line in answer.out.splitlines() if line.strip())
    assert answer.code == 0 and said["records"] == "2" and said["valid"].startswith("seconds")
    assert "250 Hz" in answer.out and "nothing was kept" in answer.out


def test_to_count_all_records_warns_of_nothing_a_second_time(
    cardialign: Callable[..., Any], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = (*words(archive, "plan"), "--patient-column", "sex")  # whose ids are hashed with no salt
    assert cardialign(*asked).code == 0
    once = caplog.messages
    caplog.clear()
    assert cardialign(*asked, "--count").code == 0
    assert any("no salt" in line for line in once) and len(caplog.messages) == len(set(caplog.messages))
    assert set(once) <= set(caplog.messages)
    caplog.clear()
    assert cardialign(*asked).code == 0 and caplog.messages == once, "the next command says it again"


def test_what_a_build_refuses_it_refuses_in_the_same_words(
    cardialign: Callable[..., Any], archive: Path, tmp_path: Path
) -> None:
    for path in archive.glob("*.dat"):
        path.write_bytes(b"")
    planned = cardialign(*words(archive, "plan"))
    built = cardialign(*words(archive, "build"), "--out", tmp_path / "set", "--workers", 1)
    assert planned.code == built.code == 1 and "scratch" not in planned.json["problem"] + planned.json["remedy"]
    assert planned.json["problem"].replace(str(archive), "") == built.json["problem"].replace(
        str(tmp_path / "set"), ""
    ).replace(str(archive), "")
    out = ("--gain", 3, "--out", tmp_path / "x.png")
    wrong = [cardialign(*words(archive, command), *out) for command in ("plan", "build")]
    assert wrong[0].code == wrong[1].code == 2 and wrong[0].json["problem"] == wrong[1].json["problem"]


def test_all_that_decides_what_is_read_can_be_said_as_to_a_build() -> None:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    of_build = {flag.removeprefix("--") for action in parser._actions for flag in action.option_strings}
    assert of_build - options() == {"codec", "records-per-shard", "workers", "address", "overwrite"}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (("plan", "wfdb", "--root", "."), ("ecg.svg", "ecg.pdf", "ecg.html")),
        (("inspect", "SHARDS", "--row", "0"), ("ecg.jpg", "ecg.html")),
    ],
)
def test_a_picture_that_would_be_something_else_by_its_name_is_refused_before_anything_is_read(
    cardialign: Callable[..., Any], tmp_path: Path, command: tuple[str, ...], names: tuple[str, ...]
) -> None:
    for name in names:
        answer = cardialign("shards", *command, "--out", tmp_path / name)
        assert answer.code == 2 and name in answer.json["problem"] and ".png" in answer.json["problem"]
    assert list(tmp_path.iterdir()) == []
