"""Sets of archives whose names and dates identify: none of them stands in any byte of what is built."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.leakage import find_leakage
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.patients import about_salt, salt_check
from cardialign.data_shards.sources.shared.pseudonyms import Pseudonyms
from tests.support.wfdb_files import ecg_counts, write_record

SALT = "a salt that nobody guesses"
NAMES = ("Meier_Anna_1951", "Schulze_Otto_1940", "Krumm_Ida_1938")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for k, name in enumerate(NAMES[:2]):
        write_record(folder / name, ecg_counts(seed=k), comments=("Age: 61",))
    write_record(folder / NAMES[2], ecg_counts()[:, :200])
    (folder / f"{NAMES[2]}.dat").write_bytes(b"cut")  # turned away, which its name must not show
    return folder


class Dated:
    """One record that tells when it was made, in every way."""

    name, root, label_sets = "dated", Path("."), ("a",)

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return [Entry("dated-1", "one")]

    def read(self, entry: Entry) -> EcgRecord:
        extra = {
            "base_date": 1,
            "told": "on 03.04.2180",
            "seen": ["21800403"],
            "original_rate": 500.0,
            "device": "a 12",
        }
        return EcgRecord(entry.key, ecg_counts(), np.ones(12, np.float32), 500.0, acquired="2180-04-03", extra=extra)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def test_a_date_is_left_out_wherever_a_reader_keeps_one() -> None:
    hidden = Pseudonyms(Dated(), names=False, dates=True)
    (entry,) = hidden.entries()
    record = hidden.read(entry)
    assert (entry.key, record.acquired, dict(record.extra)) == (
        "dated-1",
        None,
        {"original_rate": 500.0, "device": "a 12"},
    )


def built(archive: Path, out: Path, salt: str = SALT, **hidden: bool) -> Path:
    source = open_source("wfdb", archive, salt=salt)
    if hidden:
        source = Pseudonyms(source, names=hidden.get("names", False), dates=hidden.get("dates", False), salt=salt)
    build_shards(pickle.loads(pickle.dumps(source)), out, SetPlan(SignalSpec(500, 2)), workers=1)
    return out


def test_no_name_and_no_date_of_the_archive_is_in_any_byte_of_the_set(archive: Path, tmp_path: Path) -> None:
    plain = ShardSet.open(built(archive, tmp_path / "plain"))
    hidden = ShardSet.open(built(archive, tmp_path / "hidden", names=True, dates=True))
    assert any("Meier" in plain.key(row) for row in range(len(plain)))
    assert sorted(len(hidden.key(row)) for row in range(len(hidden))) == [len("wfdb-") + 16] * 2
    assert (plain.patients == hidden.patients).all() and plain.manifest["counts"] == hidden.manifest["counts"]
    for file in filter(Path.is_file, (tmp_path / "hidden").rglob("*")):
        content = file.read_bytes()
        assert not any(part.encode() in content for name in NAMES for part in name.split("_")[:2]), file
        assert b"2182" not in content, f"the year of the recordings: {file}"
    options = hidden.manifest["source"]["options"]
    assert (options["hash_keys"], options["no_dates"], options["salted"]) == (True, True, True)
    assert "Krumm" in (tmp_path / "plain" / "rejects.csv").read_text()


@pytest.mark.parametrize("salt", ["", "short"])
def test_names_are_not_hashed_with_a_salt_that_can_be_tried_out(archive: Path, salt: str) -> None:
    with pytest.raises(UsageError, match="names of files can be tried out"):
        Pseudonyms(open_source("wfdb", archive, salt=salt), names=True, dates=False, salt=salt)


def test_a_check_value_tells_a_mistyped_salt_and_not_the_salt(archive: Path, tmp_path: Path) -> None:
    assert about_salt(Secret("")) == {"salted": False}
    told = salt_check(Secret(SALT))
    assert told == about_salt(Secret(SALT))["salt_check"] != salt_check(Secret(SALT + "."))
    assert len(salt_check(Secret(SALT))) == 8, (
        "too short to try out a salt by it alone, long enough for a slip of the pen"
    )
    first, same, other = (
        ShardSet.open(built(archive, tmp_path / name, salt))
        for name, salt in (("a", SALT), ("b", SALT), ("c", SALT + "."))
    )
    assert SALT.encode() not in (tmp_path / "a" / "manifest.json").read_bytes()
    assert first.manifest["source"]["options"] == same.manifest["source"]["options"]
    assert "different salts" in find_leakage(first, other).patients_note
    assert other.manifest["source"]["options"]["salt_check"] != first.manifest["source"]["options"]["salt_check"]
