"""The real clients of object stores against servers that speak their protocols: run where `cardialign[s3]` and
moto[server], or `cardialign[gs]` and gcp-storage-emulator, are installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set import transfers as remote_files
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.data_shards.shard_set.test_remote import READ_ALL, ROOT
from tests.support.processes import free_port

SET = "s3://bucket/ecg/set"


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class LocalStore:
    """A server of its own process; of moto: `fetched()` counts the objects it has handed out, `deny()` refuses whoever
    comes from then on."""

    def __init__(self, folder: Path, program: str, *options: str) -> None:
        port = free_port()
        self.url, self._log = f"http://127.0.0.1:{port}", folder / "requests.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, *(option.format(port=port) for option in options)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def fetched(self) -> Counter[str]:
        requests = [line.split('"')[1].split() for line in self._log.read_text().splitlines() if '"GET ' in line]
        return Counter(words[1].rpartition("/")[2] for words in requests if "?" not in words[1])

    def deny(self) -> None:
        order = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(order).read()


@pytest.fixture
def store(small_set_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    """The small set in a bucket, and an environment as a user of a store other than Amazon's would set it."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install cardialign[s3]")
    pytest.importorskip("moto.server", reason="needs a local S3 server: pip install moto[server]")
    monkeypatch.setattr(remote_files, "FIRST_PAUSE_SECONDS", 0.0)
    local = LocalStore(tmp_path, "moto.server", "-H", "127.0.0.1", "-p", "{port}")
    settings = {
        "AWS_ENDPOINT_URL": local.url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in {**settings, "CARDIALIGN_CACHE": str(tmp_path / "cache"), "CARDIALIGN_CACHE_GB": "1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        files.put([str(file) for file in small_set_folder.iterdir() if file.is_file()], "bucket/ecg/set/")
        yield local
    finally:
        local.process.kill()
        local.process.wait()
        s3fs.S3FileSystem.clear_instance_cache()


def test_two_processes_of_a_node_fetch_every_shard_once_from_s3(store: LocalStore, small_set: ShardSet) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    readers = [
        subprocess.Popen([sys.executable, "-c", READ_ALL, SET], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [int(reader.communicate(timeout=120)[0]) for reader in readers]
    assert answers == [int(small_set.crc32.astype(np.int64).sum())] * 2
    counted = store.fetched()
    assert {
        name: counted[name] for name in (*small_set.shard_names, "index.parquet", "reports.parquet")
    } == dict.fromkeys((*small_set.shard_names, "index.parquet", "reports.parquet"), 1)
    assert verify(SET).problems == []


def test_what_is_wrong_in_a_bucket_is_named_with_its_url_and_the_way_out(
    store: LocalStore, small_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    files, cache = s3fs.S3FileSystem(), ShardCache(tmp_path / "other", 10**9)
    shards = ShardSet.open(SET, cache)
    changed = bytearray(files.cat_file("bucket/ecg/set/shard-000001.tar"))
    changed[700] ^= 1
    files.pipe_file("bucket/ecg/set/shard-000001.tar", bytes(changed))
    files.rm("bucket/ecg/set/shard-000002.tar")
    for number, words in (
        (1, "cannot be fetched (4 attempts): its sha256 is"),
        (2, "is missing, though the manifest lists it"),
    ):
        with pytest.raises(DataError) as caught:
            shards.read_payload(int(np.flatnonzero(shards.shard == number)[0]))
        assert (
            f"{SET}/shard-00000{number}.tar {words}" in caught.value.problem
            and "copy the shard set" in caught.value.remedy
        )
    for nowhere in ("s3://bucket/other", "s3://nobody/set"):
        with pytest.raises(DataError, match=f"{nowhere} holds no finished shard set"):
            ShardSet.open(nowhere, cache)

    store.deny()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=f"{SET}/manifest.json may not be read: ") as caught:
        ShardSet.open(SET, cache)
    assert "AWS_PROFILE" in caught.value.remedy and "AWS_ENDPOINT_URL" in caught.value.remedy

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for endpoint, words in (
        ("", "manifest.json may not be read: Unable to locate credentials"),
        ("127.0.0.1", "cannot be fetched: Invalid endpoint"),
    ):
        s3fs.S3FileSystem.clear_instance_cache()
        if endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(DataError, match=words):
            ShardSet.open(SET, cache)


def test_a_set_on_google_cloud_storage_reads_like_its_folder(
    small_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs: pip install cardialign[gs]")
    pytest.importorskip("gcp_storage_emulator", reason="needs a local server: pip install gcp-storage-emulator")
    options = ("start", "--host=127.0.0.1", "--port={port}", "--in-memory", "--default-bucket=bucket")
    local = LocalStore(tmp_path, "gcp_storage_emulator", *options)
    # the second: the client would ask for the kind of the bucket in a way that the emulator does not speak
    settings = {
        "STORAGE_EMULATOR_HOST": local.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "CARDIALIGN_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    try:
        for file in small_set.path.iterdir():
            place = f"{local.url}/upload/storage/v1/b/bucket/o?uploadType=media&name=ecg%2F{file.name}"
            urllib.request.urlopen(
                urllib.request.Request(place, file.read_bytes(), {"Content-Type": "application/octet-stream"})
            ).read()
        assert verify("gs://bucket/ecg").problems == []
        shards = ShardSet.open("gs://bucket/ecg")
        assert [shards.read_payload(row) for row in range(len(shards))] == [
            small_set.read_payload(row) for row in range(len(shards))
        ]
        with pytest.raises(DataError, match="gs://bucket/other holds no finished shard set"):
            ShardSet.open("gs://bucket/other")
    finally:
        local.process.kill()
        local.process.wait()
        gcsfs.GCSFileSystem.clear_instance_cache()
