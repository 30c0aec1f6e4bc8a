"""Opening sources by name, patient hashes and folds, and labels from outside."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources import SOURCES, open_source, source_class
from cardialign.data_shards.sources.shared.labels import read_labels
from cardialign.data_shards.sources.shared.patients import fold_of, patient_hash


@pytest.mark.parametrize("name", SOURCES)
def test_every_registered_source_has_the_readers_interface(name):
    cls = source_class(name)
    assert cls.name == name
    assert "salt" in cls.options()
    assert all(text for text in cls.options().values())
    for method in ("entries", "read", "describe"):
        assert callable(getattr(cls, method))


def test_unknown_names_and_options_list_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"'mimic-iv'.*did you mean 'mimic-iv-ecg'") as caught:
        open_source("mimic-iv", tmp_path)
    assert "ptb-xl" in caught.value.remedy
    with pytest.raises(UsageError, match=r"no option 'patient'.*did you mean 'patients'") as caught:
        open_source("mimic-iv-ecg", tmp_path, patient="x")
    assert "labels" in caught.value.remedy


def test_naming_the_sources_imports_no_heavy_package():
    code = (
        "import sys, cardialign.data_shards.sources; print([m for m in ('numpy', 'pandas', 'pyarrow', 'scipy') if m in "
        "sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        == "[]"
    )


def test_patient_hashes_depend_on_the_salt_and_reveal_no_id():
    assert patient_hash("10000032", Secret("a")) == patient_hash("10000032", Secret("a"))
    assert len({patient_hash("10000032", Secret(salt)) for salt in ("", "a", "b", "x" * 200, "x" * 201)}) == 5
    assert patient_hash("10000032") == hashlib.blake2b(b"10000032", digest_size=8).hexdigest()


def test_folds_by_hash_are_1_to_10_and_about_even():
    folds = [fold_of(patient_hash(str(k))) for k in range(5000)]
    assert set(folds) == set(range(1, 11))
    assert all(400 < folds.count(fold) < 600 for fold in range(1, 11))


def test_labels_are_grouped_by_record_and_set(tmp_path):
    text = 'study_id,label_set,label\n2,finding,AF\n1,icd,"I48"\n2,finding,LBBB\n2,finding,AF\n3,finding,\n'
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(text.encode()))
    labels, rows, _ = read_labels(tmp_path / "l.csv.gz", "study_id")
    assert rows == 5
    assert labels == {"2": {"finding": ("AF", "LBBB")}, "1": {"icd": ("I48",)}, "3": {"finding": ()}}


def test_labels_without_an_id_are_refused(tmp_path):
    (tmp_path / "l.csv").write_text("study_id,label_set,label\n,finding,AF\n")
    with pytest.raises(DataError, match=r"l\.csv"):
        read_labels(tmp_path / "l.csv", "study_id")


@pytest.mark.parametrize(
    ("root", "options"),
    [(5, {}), (None, {}), ("", {}), (".", {"salt": 5}), (".", {"salt": b"bytes"}), (".", {"labels": 5}),
     (".", {"min_matched": []}), (".", {"table": {}, "key_column": "a"})],
)  # fmt: skip
def test_what_no_option_can_be_is_said_in_a_sentence(
    root: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_source("wfdb", root, **options)
    assert "wfdb" in caught.value.problem and caught.value.remedy
