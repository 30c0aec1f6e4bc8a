"""Shards behind a URL read like a folder: fetched once per node, checked, bounded on disk, and every failure names the
URL and the way out."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shard_set import transfers as remote_files
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.remote import local_folder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.data_shards.text.bank import TextBank, build_text_bank

ROOT = Path(__file__).parents[3]
MEMORY = "memory://bucket/set"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def bucket(small_set_folder: Path) -> Iterator[str]:
    """The small set in fsspec's memory file system, which is emptied afterwards."""
    files = fsspec.filesystem("memory")
    files.put(str(small_set_folder), "/bucket/set", recursive=True)
    yield MEMORY
    files.rm("/bucket", recursive=True)


class LengthEncoder:
    """A text encoder that sees the length of a report only: its one token."""

    fingerprint, max_tokens, dim = "length-v1", 4, 2

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), 4), dtype=np.int32)
        ids[:, 0] = [len(text) for text in texts]
        return ids, np.ones(len(texts), dtype=np.int64)

    def embed(self, texts: list[str]) -> np.ndarray:
        angle = np.array([len(text) for text in texts], dtype=np.float32)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def describe(self) -> dict[str, str]:
        return {"id": self.fingerprint}


def cache_in(folder: Path, limit: int = 10**9) -> ShardCache:
    return ShardCache(folder / "cache", limit)


def cached_shards(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.glob("*/shard-*.tar"))


def test_a_remote_set_reads_like_its_folder_and_fetches_only_the_shards_that_are_read(
    bucket: str, small_set: ShardSet, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path)
    shards = ShardSet.open(bucket, cache)
    assert (
        shards.fingerprint == small_set.fingerprint
        and shards.reports.equals(small_set.reports)
        and cached_shards(cache) == []
    )
    last = len(shards) - 1
    np.testing.assert_array_equal(shards.read_record(last).counts, small_set.read_record(last).counts)
    assert cached_shards(cache) == ["shard-000002.tar"]
    everything = np.arange(len(shards))
    for ours, theirs in zip(iterate_rows(shards, everything, 16), iterate_rows(small_set, everything, 16), strict=True):
        np.testing.assert_array_equal(ours.signal, theirs.signal)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read_payload(0) == small_set.read_payload(0)


def test_the_cache_stays_within_its_limit_and_a_dropped_shard_stays_readable_until_it_is_closed(
    bucket: str, small_set: ShardSet, tmp_path: Path
) -> None:
    tables = sum(path.stat().st_size for path in small_set.path.iterdir() if path.suffix != ".tar")
    largest = max(shard["bytes"] for shard in small_set.manifest["shards"])
    cache = cache_in(tmp_path, tables + 2 * largest + 4096)
    shards = ShardSet.open(bucket, cache)
    rows = [int(np.flatnonzero(small_set.shard == number)[0]) for number in range(3)]
    held = shards.files._file(0)
    for row in rows:
        assert shards.read_payload(row) == small_set.read_payload(row)
    assert cached_shards(cache) == ["shard-000001.tar", "shard-000002.tar"]
    assert os.fstat(held.descriptor).st_nlink == 0 and 0 not in shards.files.open_shards()
    assert os.pread(held.descriptor, int(shards.size[0]), int(shards.offset[0])) == small_set.read_payload(0)
    assert shards.read_payload(rows[0]) == small_set.read_payload(rows[0])
    assert sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()) <= cache.limit


def test_a_shard_that_was_read_lately_outlives_one_that_was_not(
    bucket: str, small_set: ShardSet, tmp_path: Path
) -> None:
    tables = sum(path.stat().st_size for path in small_set.path.iterdir() if path.suffix != ".tar")
    cache = cache_in(tmp_path, tables + 2 * max(shard["bytes"] for shard in small_set.manifest["shards"]) + 4096)
    for number in (0, 1, 0, 2):  # a new process each time: what counts is the use on this node
        shards = ShardSet.open(bucket, cache)
        shards.read_payload(int(np.flatnonzero(shards.shard == number)[0]))
    assert cached_shards(cache) == ["shard-000000.tar", "shard-000002.tar"]


def test_a_shard_that_arrives_with_a_flipped_bit_or_not_at_all_is_tried_again_and_never_read(
    bucket: str, tmp_path: Path
) -> None:
    files = fsspec.filesystem("memory")
    content = bytearray(files.cat_file("/bucket/set/shard-000001.tar"))
    content[600] ^= 1
    files.pipe_file("/bucket/set/shard-000001.tar", bytes(content))
    cache = cache_in(tmp_path)
    shards = ShardSet.open(bucket, cache)
    with pytest.raises(
        DataError, match=r"memory://bucket/set/shard-000001.tar cannot be fetched \(4 attempts\): its sha256 is"
    ):
        shards.read_payload(int(np.flatnonzero(shards.shard == 1)[0]))
    assert cached_shards(cache) == [] and not list(cache.folder.rglob("*.tmp"))
    files.rm("/bucket/set/shard-000001.tar")
    with pytest.raises(
        DataError, match="its sha256 is"
    ):  # thousands of records lie in a shard: they do not all ask for it again at once
        shards.read_payload(int(np.flatnonzero(shards.shard == 1)[1]))
    with pytest.raises(DataError, match=r"shard-000001.tar is missing"):
        pickle.loads(pickle.dumps(shards)).read_payload(int(np.flatnonzero(shards.shard == 1)[1]))
    files.rm("/bucket/set/shard-000002.tar")
    with pytest.raises(DataError, match=r"memory://bucket/set/shard-000002.tar is missing") as caught:
        shards.read_payload(len(shards) - 1)
    assert "copy the shard set there again" in caught.value.remedy


def test_a_set_that_was_built_anew_under_the_same_url_does_not_mix_with_its_past(bucket: str, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    old = ShardSet.open(bucket, cache)
    files = fsspec.filesystem("memory")
    manifest = files.cat_file("/bucket/set/manifest.json").replace(b'"source": {', b'"source": {"edition": 2,')
    files.pipe_file("/bucket/set/manifest.json", manifest)
    new = ShardSet.open(bucket, cache)
    assert new.path != old.path and new.manifest["source"]["edition"] == 2


def test_a_text_bank_beside_remote_shards_is_fetched_with_them(
    bucket: str, set_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), LengthEncoder())
    fsspec.filesystem("memory").put(str(set_copy / "text_bank"), "/bucket/set/text_bank", recursive=True)
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    fetched = TextBank.open(MEMORY)
    np.testing.assert_array_equal(fetched.embeddings, bank.embeddings)
    assert fetched.path.parent.parent == local_folder(MEMORY) and fetched.statements == bank.statements


def test_verify_fetches_a_remote_set_and_names_what_does_not_arrive(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CARDIALIGN_CACHE_GB", "0")  # every shard is dropped as soon as the next one comes
    report = verify(bucket)
    assert (report.problems, report.shards, report.records) == ([], 3, 88)
    fsspec.filesystem("memory").rm("/bucket/set/shard-000001.tar")
    assert verify(bucket).problems == [f"{MEMORY}/shard-000001.tar is missing, though the manifest lists it"]


def test_what_is_no_shard_set_is_named_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="memory://nowhere/set holds no finished shard set"):
        ShardSet.open("memory://nowhere/set")
    with pytest.raises(DataError, match="runs a shell command"):
        ShardSet.open("pipe:cat set.tar")
    with pytest.raises(UserError, match="xyz://bucket/set: protocol xyz:// is not known"):
        ShardSet.open("xyz://bucket/set")
    for missing, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        with contextlib.suppress(ImportError):
            __import__(package)
            continue  # installed here: nothing to say
        with pytest.raises(UserError, match=f"needs the package {package}") as caught:
            ShardSet.open(f"{missing}://bucket/set")
        assert caught.value.remedy == f"install it: pip install {package}"
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/set/manifest.json cannot be fetched"):
        ShardSet.open("http://127.0.0.1:9/set")
    monkeypatch.setenv("CARDIALIGN_CACHE_GB", "plenty")
    with pytest.raises(UsageError, match="CARDIALIGN_CACHE_GB is 'plenty'"):
        ShardSet.open(MEMORY)


def test_a_url_survives_being_handled_as_a_path(small_set_folder: Path, tmp_path: Path) -> None:
    assert url_of(Path("s3://bucket/set")) == url_of("s3://bucket/set/") == "s3://bucket/set"
    assert url_of(Path("file:///data/set")) == "file:///data/set"
    assert url_of(tmp_path) is None and url_of("relative/folder") is None
    by_file = ShardSet.open(f"file://{small_set_folder}", cache_in(tmp_path))
    assert by_file.read_payload(5) == ShardSet.open(small_set_folder).read_payload(5)


class _CountingServer(http.server.ThreadingHTTPServer):
    """Python's own file server over a folder; counts what is fetched and can fail the first request of each file."""

    def __init__(self, folder: Path, failing: bool) -> None:
        self.folder, self.failing, self.served = folder, failing, Counter[str]()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: _CountingServer

    def __init__(self, request, address, server) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        self.server.served[self.path] += 1
        if self.server.failing and self.server.served[self.path] == 1 and self.path.endswith(".tar"):
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, failing: bool = False) -> Iterator[tuple[str, Counter[str]]]:
    server = _CountingServer(folder, failing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


READ_ALL = """
import sys, zlib
from cardialign.data_shards.shard_set.shard_set import ShardSet
shards = ShardSet.open(sys.argv[1])
print(sum(zlib.crc32(shards.read_payload(row)) for row in range(len(shards))))
"""


def test_two_processes_of_a_node_fetch_every_shard_once_over_http(small_set: ShardSet, tmp_path: Path) -> None:
    with served(small_set.path) as (url, counted):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "CARDIALIGN_CACHE": str(tmp_path / "cache"),
            "CARDIALIGN_CACHE_GB": "1",
        }
        readers = [
            subprocess.Popen([sys.executable, "-c", READ_ALL, url], env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        answers = [reader.communicate(timeout=60)[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert [int(answer) for answer in answers] == [int(small_set.crc32.astype(np.int64).sum())] * 2
    assert {path: times for path, times in counted.items() if path.endswith((".tar", ".parquet"))} == {
        f"/{name}": 1 for name in (*small_set.shard_names, "index.parquet", "reports.parquet")
    }


def test_a_fetch_that_takes_long_is_reported_while_it_does(
    small_set: ShardSet, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(remote_files, "SLOW_FETCH_SECONDS", 0.0)
    with served(small_set.path) as (url, _), caplog.at_level(logging.WARNING):
        ShardSet.open(url, cache_in(tmp_path)).read_payload(0)
    assert f"action=slow-fetch url={url}/shard-000000.tar seconds=0 state=waiting" in caplog.messages


def test_a_server_that_fails_for_a_moment_is_asked_again(small_set: ShardSet, tmp_path: Path) -> None:
    with served(small_set.path, failing=True) as (url, counted):
        shards = ShardSet.open(url, cache_in(tmp_path))
        assert shards.read_payload(0) == small_set.read_payload(0)
    assert counted["/shard-000000.tar"] == 2
    with pytest.raises(DataError, match=re.escape(f"{url}/shard-000001.tar cannot be fetched")):
        shards.read_payload(40)
