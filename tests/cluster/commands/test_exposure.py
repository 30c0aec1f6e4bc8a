"""`exposure prove` and `check`: answers from an export alone, and proofs that hold against its root alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.exposed import SALT, exposed
from tests.support.tiny_shards import make_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`, of 60 records of 30 patients; `export`, trained on the first 40; `salt`, the certificate's."""
    folder = tmp_path_factory.mktemp("exposure")
    exposed(ShardSet.open(make_shards(folder / "set")), folder / "export", list(range(40)))
    (folder / "salt").write_text(f"{SALT}\n")
    (folder / "records").write_text("tiny-000\ntiny-039\n\ntiny-040\nelse-7\n")
    return folder


def test_records_are_asked_for_and_the_proof_holds_against_the_root_alone(
    cardialign: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    salt, proof = ("--salt-file", place / "salt"), tmp_path / "proof.json"
    asked = ("exposure", "prove", place / "export", "tiny-001", "--records", place / "records", *salt)
    found = cardialign(*asked, "--out", proof, "--json")
    told = found.json
    assert found.code == 0 and told["answers"] == {"records": {"asked": 5, "in_training": 3, "not_in_training": 2}}
    assert told["found"] == ["record tiny-001", "record tiny-000", "record tiny-039"]
    checked = cardialign("exposure", "check", proof, "--root", told["root"], "--json").json
    assert [each["in_training"] for each in checked["shown"]] == [True, True, True, False, False]
    assert (
        checked["encoder"] == json.loads((place / "export" / "digests.json").read_text())["files"]["model.safetensors"]
    )
    other = cardialign("exposure", "check", proof, "--root", "0" * 64)
    assert other.code == 1 and "another certificate" in other.out + other.err
    assert SALT not in proof.read_text() + found.out


def test_a_test_set_is_asked_for_without_a_salt_and_by_name_with_it(
    cardialign: Callable[..., Any], place: Path
) -> None:
    plain = cardialign("exposure", "prove", place / "export", "--shards", place / "set", "--json").json
    assert (plain["ledger"]["status"], plain["ledger"]["records"], plain["ledger"]["patients"]) == ("found", 40, 20)
    assert "answers" not in plain
    named = ("exposure", "prove", place / "export", "--shards", place / "set", "--salt-file", place / "salt", "--json")
    assert cardialign(*named).json["answers"] == {
        "patients": {"asked": 30, "in_training": 20, "not_in_training": 10},
        "records": {"asked": 60, "in_training": 40, "not_in_training": 20},
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("tiny-000",), "salt is not in the export"),
        (("tiny-000", "--salt-file", "records"), "has 5 lines"),
        (("--patients", "records", "--salt-file", "salt", "--source", "mimic-iv-ecg"), "patients cannot be asked for"),
        (("--out", "proof"), "nothing to prove"),
        (("--folds", "1"), "say which part of --shards"),
    ],
)
def test_what_cannot_be_answered_says_why(
    cardialign: Callable[..., Any], place: Path, words: tuple[str, ...], complaint: str
) -> None:
    files = {"records", "salt", "proof"}
    answer = cardialign("exposure", "prove", place / "export", *(place / w if w in files else w for w in words))
    assert answer.code != 0 and complaint in answer.out + answer.err
