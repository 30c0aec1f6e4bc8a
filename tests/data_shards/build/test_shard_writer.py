"""A shard is plain USTAR, the same bytes every time, and appears whole or not at all."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset

from cardialign.data_shards.build.shard_writer import (
    ShardWriter,
    _tar_header,
    metadata_bytes,
    plain_tar_header,
)
from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import sha256_of

RECORDS = [(f"rec-{i}", bytes([i]) * (100 + 300 * i), {"key": f"rec-{i}", "b": i, "a": "é"}) for i in range(5)]


def write(path: Path) -> list:
    with ShardWriter(path) as writer:
        members = [writer.add(*record) for record in RECORDS]
        info = writer.commit()
    assert (info.name, info.records, info.bytes, info.sha256) == (path.name, 5, path.stat().st_size, sha256_of(path))
    return members


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        write(tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_offsets_lead_straight_to_payload_and_metadata(tmp_path: Path) -> None:
    members = write(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    for (_, payload, meta), member in zip(RECORDS, members, strict=True):
        assert content[member.offset : member.offset + member.size] == payload
        assert zlib.crc32(payload) == member.crc32
        assert json.loads(content[member.meta_offset : member.meta_offset + member.meta_size]) == meta


def test_stock_tar_and_stock_webdataset_read_it(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [f"{key}.{kind}" for key, _, _ in RECORDS for kind in ("ecg", "json")]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o644)}
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(s["__key__"], s["ecg"], json.loads(s["json"])) for s in samples] == RECORDS


def test_nothing_is_left_of_a_shard_that_was_not_committed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        with ShardWriter(tmp_path / "a.tar") as writer:
            writer.add(*RECORDS[0])
            raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_json_cannot_hold_names_the_record() -> None:
    with pytest.raises(RecordRejected, match="bad-metadata: record rec-9"):
        metadata_bytes({"key": "rec-9", "age": float("nan")})


def test_a_key_too_long_for_a_tar_name_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer, pytest.raises(RecordRejected, match="longer than 90"):
        writer.add("k" * 91, b"", {})


@pytest.mark.parametrize("size", [0, 1, 511, 25_184, 8**11 - 1])
@pytest.mark.parametrize("name", ["a.ecg", "mimic-40689238.json", "k" * 86 + ".ecg", "n" * 100])
def test_the_fast_tar_header_is_that_of_the_standard_library(name: str, size: int) -> None:
    assert _tar_header(name, size) == plain_tar_header(name, size)
