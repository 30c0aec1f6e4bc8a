"""Whatever bits of a committed shard set are flipped or cut: what is read is what was written, or is refused; and a
full verify finds it in the shards and tables (a manifest also says things that nothing follows from)."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.layout import INDEX, MANIFEST, REPORTS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_source import SmallSource

RECORDS = 24
COLUMNS = ("shard", "offset", "size", "crc32", "fold", "report", "age_years", "sex", "quality", "patients")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "set"
    build_shards(
        SmallSource(RECORDS, samples=100), folder, SetPlan(SignalSpec(500, 0.2), records_per_shard=8), workers=1
    )
    build_text_bank(ShardSet.open(folder), HashingEncoder())
    return folder


def flipped(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    if rng.random() < 0.15:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 2)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", ["shard-000001.tar", INDEX, REPORTS, MANIFEST])
def test_a_set_with_flipped_bits_reads_as_written_or_is_refused_and_verify_finds_it(
    whole: Path, tmp_path: Path, name: str
) -> None:
    truth = ShardSet.open(whole)
    counts = [truth.read_record(row).counts for row in range(RECORDS)]
    columns = {column: getattr(truth, column) for column in COLUMNS}
    rng = random.Random(name)
    shutil.copytree(whole, tmp_path / "set")
    file, raw = tmp_path / "set" / name, (whole / name).read_bytes()
    refused = 0
    for _ in range(30):
        file.write_bytes(flipped(raw, rng))
        if file.read_bytes() == raw:
            continue
        try:
            assert verify(tmp_path / "set").problems or name == MANIFEST
            shards = ShardSet.open(tmp_path / "set")
            order = GlobalOrder(np.arange(len(shards)), shards.patients, 4, 0, truth.fingerprint)
            with ShardStream(shards, order, stop_step=RECORDS // 4, read_ahead=ReadAhead(threads=1)) as batches:
                assert sum(len(batch.rows) for batch in batches) == RECORDS
            for row in range(RECORDS):
                np.testing.assert_array_equal(shards.read_record(row).counts, counts[row])
            for column, values in columns.items():
                np.testing.assert_array_equal(getattr(shards, column), values, err_msg=column)
            assert shards.reports.num_rows == truth.reports.num_rows
        except DataError:
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["embeddings.npy", "lengths.npy", "axes.npy", "bank.json"])
def test_a_text_bank_with_flipped_bits_in_a_header_opens_or_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "set")
    (bank,) = (tmp_path / "set" / "text_bank").iterdir()
    raw, rng, refused = (bank / name).read_bytes(), random.Random(name), 0
    for _ in range(60):
        (bank / name).write_bytes(flipped(raw[:128], rng) + raw[128:])
        try:
            TextBank.open(tmp_path / "set", "hashing")
        except DataError:
            refused += 1
    assert refused


def test_record_metadata_with_a_changed_name_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "set")
    tar = tmp_path / "set" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"statements"', b'"statemenus"', 1))
    shards = ShardSet.open(tmp_path / "set")
    with pytest.raises(DataError, match=r"metadata in shard shard-000000\.tar is damaged \('statements'\)"):
        for row in range(RECORDS):
            shards.read_record(row)


@pytest.mark.parametrize("lost", ["spec", "tables", "counts", "fingerprint", "shards", "source"])
def test_a_manifest_without_a_part_is_named_as_damaged(whole: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(whole, tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / MANIFEST).read_text())
    del manifest[lost]
    (tmp_path / "set" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"manifest\.json is damaged: it has no '{lost}'"):
        ShardSet.open(tmp_path / "set")


def test_a_laid_down_column_that_was_damaged_is_laid_down_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    digest = sha256_of(whole / INDEX)
    first = IndexFile(whole / INDEX, digest, 0).column("size", np.int32)
    path = Path(first.filename)  # type: ignore[attr-defined]
    values = first.tolist()
    path.write_bytes(path.read_bytes().replace(b"'<i4', ", b"'<i4'( ", 1))
    assert IndexFile(whole / INDEX, digest, 0).column("size", np.int32).tolist() == values
