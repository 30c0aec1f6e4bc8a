"""What a header, a table or a link in an archive names is read within its folder, and nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.plugins import thing_at
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from cardialign.data_shards.sources import SOURCES, open_source
from cardialign.data_shards.sources.base import Entry
from tests.support.wfdb_files import ecg_counts, write_record

COUNTS = ecg_counts(1000)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An archive that holds one record, beside a recording that is nobody's business."""
    write_record(tmp_path / "private/secret", COUNTS)
    write_record(tmp_path / "inbox/r", COUNTS)
    return tmp_path / "inbox"


def linked(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def chained(folder: Path) -> None:
    linked(folder, "r.dat", "b.dat")
    linked(folder, "b.dat", "../private/secret.dat")


def folder_link(folder: Path) -> None:
    linked(folder, "sub", "../private")
    (folder / "r.hea").write_text((folder / "r.hea").read_text().replace("r.dat", "sub/secret.dat"))


def segment(folder: Path) -> None:
    write_record(folder / "seg", COUNTS)
    linked(folder, "seg.dat", "../private/secret.dat")
    (folder / "r.hea").write_text("r/1 12 500 1000\nseg 1000\n")


def segment_header(folder: Path) -> None:
    header = folder.parent / "private/secret.hea"
    header.write_text(header.read_text().replace("secret 12", "seg 12", 1))
    linked(folder, "seg.hea", "../private/secret.hea")
    linked(folder, "secret.dat", "../private/secret.dat")
    (folder / "r.hea").write_text("r/1 12 500 1000\nseg 1000\n")


LINKS: dict[str, Callable[[Path], None]] = {
    "a file of another folder": lambda f: linked(f, "r.dat", "../private/secret.dat"),
    "by its whole path": lambda f: linked(f, "r.dat", os.path.abspath(f / "../private/secret.dat")),
    "a folder whose name begins alike": lambda f: linked(
        f, "r.dat", str(shutil.copytree(f.parent / "private", f.parent / "inbox-2") / "secret.dat")
    ),
    "through another link": chained,
    "through a folder": folder_link,
    "of a segment": segment,
    "of a segment's header": segment_header,
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_out_of_the_folder_of_a_header_is_not_followed(
    inbox: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    LINKS[kind](inbox)
    with pytest.raises(RecordRejected, match=r"outside-root.*CARDIALIGN_FOLLOW_LINKS=1"):
        read_wfdb(inbox / "r")
    monkeypatch.setenv("CARDIALIGN_FOLLOW_LINKS", "1")
    assert read_wfdb(inbox / "r").counts.shape == (12, 1000)


@pytest.mark.parametrize(("name", "suffix"), [("wfdb", ".hea"), ("wfdb", ".dat"), ("arrays", ".npy")])
def test_a_record_whose_file_is_a_link_out_of_the_set_is_rejected_by_name(inbox: Path, name: str, suffix: str) -> None:
    if name == "arrays":
        np.save(inbox.parent / "private/secret.npy", COUNTS / 1000)
        shutil.rmtree(inbox)
        inbox.mkdir()
    linked(inbox, f"r{suffix}", f"../private/secret{suffix}")
    source = open_source(name, inbox, **({"sampling_rate": 500} if name == "arrays" else {}))
    (entry,) = source.entries()
    with pytest.raises(RecordRejected, match="outside-root"):
        source.read(entry)


def test_links_within_a_set_are_followed(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As people arrange them, as a whole folder on another disk, and as git-annex and DataLad do."""
    (inbox / "kept").mkdir()
    (inbox / "r.dat").rename(inbox / "kept/r.dat")
    linked(inbox, "r.dat", "kept/r.dat")
    assert read_wfdb(inbox / "r").counts.shape == (12, 1000)
    linked(inbox.parent, "mounted", "private")
    assert read_wfdb(inbox.parent / "mounted/secret").counts.shape == (12, 1000)
    objects = inbox / ".git/annex/objects/aa/bb"
    write_record(inbox / "below/s", COUNTS)
    objects.mkdir(parents=True)
    (inbox / "below/s.dat").rename(objects / "SHA256E-s24000--0.dat")
    linked(inbox / "below", "s.dat", "../.git/annex/objects/aa/bb/SHA256E-s24000--0.dat")
    assert read_wfdb(inbox / "below/s").counts.shape == (12, 1000)


@pytest.mark.parametrize("path", ["../private/secret", "/etc/hostname", "a/../../private/secret", "..", "a\\..\\..\\x"])
@pytest.mark.parametrize("name", ["ptb-xl", "mimic-iv-ecg", "wfdb", "challenge", "zzu-pecg", "code15", "cpsc2018"])
def test_no_table_of_any_set_names_a_record_outside_its_root(inbox: Path, name: str, path: str) -> None:
    source = object.__new__(thing_at(SOURCES[name]))  # whatever tables its layout asks for
    source.root = inbox
    with pytest.raises(RecordRejected, match="outside-root"):
        source.read(Entry("k", path, {"named": False, "patient": "p", "statements": (), "acquired": ""}))
