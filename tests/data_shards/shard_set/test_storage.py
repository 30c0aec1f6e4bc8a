"""Storage that gives too few files, comes and goes, or holds something else: never counted as damage of records, and
one fault where it is one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set import storage
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.layout import INDEX, MANIFEST, content_fingerprint, spec_of
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.storage import patiently
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream
from tests.support.small_source import SmallSource

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.02, 0.04))


def streamed(shards: ShardSet | JoinedSets, steps: int = 12) -> int:
    """Records that a stream with a quarantine finds bad."""
    order = GlobalOrder(np.arange(len(shards)), None, 8, 0, "f")
    with ShardStream(shards, order, stop_step=steps, quarantined={}, read_ahead=ReadAhead(threads=2)) as batches:
        return sum(len(batch.bad) for batch in batches)


MIXTURE = """
import resource, sys
import numpy as np
from pathlib import Path
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.storage import OPEN_FILES
from cardialign.data_shards.stream.stream import ShardStream

soft, hard, taken, *folders = sys.argv[1:]
held = [open("/dev/null") for _ in range(int(taken))]
sets = JoinedSets([ShardSet.open(Path(folder)) for folder in folders])
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
order = GlobalOrder(np.arange(len(sets)), None, 10, 0, "f")
with ShardStream(sets, order, stop_step=30, quarantined={}) as batches:
    bad = sum(len(batch.bad) for batch in batches)
open_files = sum(len(each.files.open_shards()) for each in sets.sets)
print(bad, open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three sets of 40 shards with one record each."""
    root = tmp_path_factory.mktemp("many")
    for number in range(3):
        plan = SetPlan(SignalSpec(500, 1), records_per_shard=1)
        build_shards(SmallSource(40, seed=number), root / str(number), plan, workers=1)
    return [str(root / str(number)) for number in range(3)]


@pytest.mark.parametrize(
    ("soft", "hard", "taken", "most"),
    [
        (64, 64, 0, 32),  # nothing to raise: half of the limit for all three sets together
        (64, 1000, 0, 120),  # a limit that may be raised is: all 120 shards stay open
        (64, 64, 50, 14),  # others have open what leaves less than the budget: files are closed as the limit is met
    ],
)
def test_all_sets_of_a_process_share_one_budget_of_open_files_and_no_record_counts_as_damaged(
    many_shards: list[str], soft: int, hard: int, taken: int, most: int
) -> None:
    words = [sys.executable, "-c", MIXTURE, str(soft), str(hard), str(taken), *many_shards]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    bad, open_files, limit = map(int, done.stdout.split())
    assert (bad, limit) == (0, hard)
    assert (open_files == most) if not taken else (0 < open_files <= most)


USED_UP = """
import os, resource, sys
from cardialign.data_shards.errors import StorageError
from cardialign.data_shards.shard_set.shard_set import ShardSet

shards = ShardSet.open(sys.argv[1])
assert shards.read_payload(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
shards.files.close()
others = []
try:
    while True:
        others.append(os.open(os.devnull, os.O_RDONLY))
except OSError as error:
    assert "Too many open files" in str(error)
try:
    shards.read_payload(0)
except StorageError as error:
    os.close(others.pop())
    print(error.problem, error.remedy, sep="\\n")
assert shards.read_payload(0)
"""


@pytest.mark.slow
def test_a_limit_that_somebody_else_has_used_up_stops_the_run_in_words(set_copy: Path) -> None:
    """In a process of its own: whatever else ran before has files open."""
    words = [sys.executable, "-c", USED_UP, str(set_copy)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    problem, remedy = done.stdout.splitlines()
    assert re.search(r"shard-000000\.tar of .* cannot be read \(tried \d+ times\)", problem)
    assert "ulimit -n" in remedy


def test_closed_sets_and_forgotten_sets_let_go_of_their_files(set_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.OPEN_FILES, "_most", None)  # a test that ran out of files lowered it for the process

    def held() -> int:
        targets = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() if
                   os.path.lexists(f"/proc/self/fd/{fd}"))  # fmt: skip
        return sum(target.startswith(str(set_copy)) and target.endswith(".tar") for target in targets)

    shards = ShardSet.open(set_copy)
    copy = pickle.loads(pickle.dumps(shards))
    for each in (shards, copy):
        for row in range(len(each)):
            each.read_payload(row)
    assert held() == 6
    shards.files.close()
    assert held() == 3 and shards.files.open_shards() == []
    del copy, each
    assert held() == 0


def test_a_mount_that_comes_back_is_waited_for_and_one_that_does_not_is_named_with_the_tries(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    payloads = [shards.read_payload(row) for row in range(len(shards))]
    shards.files.close()
    away = set_copy.with_name("away")
    set_copy.rename(away)
    back = threading.Timer(0.02, away.rename, (set_copy,))
    back.start()
    assert shards.read_payload(40) == payloads[40]
    back.join()
    shards.files.close()
    set_copy.rename(away)
    with pytest.raises(
        StorageError, match=r"shard-000001\.tar of .*/copy cannot be read \(tried 4 times\): "
    ) as caught:
        shards.read_payload(40)
    assert "run the same command again" in caught.value.remedy
    with pytest.raises(StorageError, match="tried 4 times"):
        streamed(shards)
    away.rename(set_copy)
    assert streamed(shards) == 0, "an outage leaves nothing behind"


def test_a_fault_that_passes_is_tried_again_and_one_that_lasts_says_how_often() -> None:
    for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EACCES, errno.ENOSPC):
        left = [OSError(number, os.strerror(number))] * 2

        def give(left: list[OSError] = left) -> str:
            if left:
                raise left.pop()
            return "read"

        assert patiently(give, "shard a.tar") == "read"

        def refuse(number: int = number) -> str:
            raise OSError(number, os.strerror(number))

        with pytest.raises(StorageError, match=r"shard a\.tar cannot be read \(tried 4 times\)") as caught:
            patiently(refuse, "shard a.tar")
        assert os.strerror(number) in caught.value.problem and "run the same command again" in caught.value.remedy


@pytest.mark.parametrize("what", ["missing", "shorter", "longer", "zeros", "another shard", "pipe", "socket", "folder"])
def test_a_lost_shard_is_one_fault_that_names_it_and_no_bad_record(
    set_copy: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(set_copy)
    file = set_copy / "shard-000001.tar"
    content = file.read_bytes()
    file.unlink()
    words = "cannot be read"
    if what in ("shorter", "longer"):
        file.write_bytes(content[:-512] if what == "shorter" else content + b"\0")
        words = f"it has {file.stat().st_size} bytes, the manifest says {len(content)}"
    elif what in ("zeros", "another shard"):
        other = bytes(len(content)) if what == "zeros" else (set_copy / "shard-000000.tar").read_bytes()
        file.write_bytes(other[: len(content)].ljust(len(content), b"\0"))
        words = "holds something else than the index says"
    elif what == "missing":
        words = "is missing"
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        monkeypatch.chdir(set_copy)  # the name of a socket has to be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    with pytest.raises(StorageError, match=rf"shard-000001\.tar of {set_copy}.* {words}"):
        streamed(shards)


def test_a_shard_that_is_cut_while_it_is_open_is_one_fault_too(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    first, last = (int(np.flatnonzero(shards.shard == 1)[at]) for at in (0, -1))
    payload = shards.read_payload(first)
    file = set_copy / "shard-000001.tar"
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(2000)
    with pytest.raises(StorageError, match=r"shard-000001\.tar of .* ends early: it has 2000 bytes"):
        shards.read_payload(last)
    file.write_bytes(content)
    assert shards.read_payload(first) == payload and shards.read_payload(last)


def test_a_few_damaged_records_stay_damaged_records(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    rows = np.flatnonzero(shards.shard == 1)[[2, 9, 20]].tolist()
    file = set_copy / "shard-000001.tar"
    content = bytearray(file.read_bytes())
    for row in rows:
        content[int(shards.offset[row]) + 60] ^= 1
    file.write_bytes(content)
    for row in set(range(len(shards))) - set(rows):
        assert shards.read_payload(row)
    for row in rows:
        with pytest.raises(DataError, match="does not match its crc32") as caught:
            shards.read_payload(row)
        assert not isinstance(caught.value, StorageError), "the shard was blamed for a record"


def test_an_index_that_points_out_of_its_shard_is_refused_before_memory_is_taken(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    for offset, size in ((-1, 10), (0, -1), (0, 2**31 - 1), (2**62, 2**62)):
        with pytest.raises(DataError, match=r"record k: the index says .* of shard shard-000000\.tar, which has \d+ b"):
            shards.files.read(0, offset, size, lambda: "k")


def test_a_cache_that_was_emptied_meanwhile_is_filled_again(set_copy: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    shards, whole = ShardSet.open(f"file://{set_copy}", cache), ShardSet.open(set_copy)
    columns = [shards.shard, shards.offset, shards.size, shards.crc32]
    assert all(column.size for column in columns)
    shutil.rmtree(cache.folder)
    assert shards.read_payload(3) == whole.read_payload(3)


@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "longer"])
def test_a_shard_damaged_in_the_cache_of_a_url_is_fetched_again_and_no_record_is_to_blame(
    set_copy: Path, tmp_path: Path, damage: str
) -> None:
    url, cache = f"file://{set_copy}", ShardCache(tmp_path / "cache", 10**9)
    shards, whole = ShardSet.open(url, cache), ShardSet.open(set_copy)
    row = int(np.flatnonzero(whole.shard == 1)[4])
    assert shards.read_payload(row) == whole.read_payload(row)
    shards.files.close()
    file = shards.path / "shard-000001.tar"
    content = bytearray(file.read_bytes())
    content[int(whole.offset[row]) + 60] ^= damage == "a flipped bit"
    file.write_bytes({"cut": content[:3000], "longer": content + b"x"}.get(damage, content))
    assert shards.read_payload(row) == whole.read_payload(row)
    assert file.read_bytes() == (set_copy / file.name).read_bytes()


def test_a_record_that_is_damaged_at_the_source_stays_damaged(set_copy: Path, tmp_path: Path) -> None:
    """The manifest vouches for the shard as it lies there: fetching it again mends nothing, and happens no second
    time."""
    whole = ShardSet.open(set_copy)
    file = set_copy / "shard-000001.tar"
    content = bytearray(file.read_bytes())
    row = int(np.flatnonzero(whole.shard == 1)[4])
    content[int(whole.offset[row]) + 60] ^= 1
    file.write_bytes(content)
    manifest = json.loads((set_copy / MANIFEST).read_text())
    manifest["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
    manifest["fingerprint"] = content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"])
    (set_copy / MANIFEST).write_text(json.dumps(manifest))
    shards = ShardSet.open(f"file://{set_copy}", ShardCache(tmp_path / "cache", 10**9))
    with pytest.raises(DataError, match="does not match its crc32") as caught:
        shards.read_payload(row)
    assert not isinstance(caught.value, StorageError)


def test_a_table_damaged_in_the_cache_of_a_url_is_fetched_again(set_copy: Path, tmp_path: Path) -> None:
    url, cache = f"file://{set_copy}", ShardCache(tmp_path / "cache", 10**9)
    index = ShardSet.open(url, cache).path / INDEX
    content = bytearray(index.read_bytes())
    content[-60] ^= 1
    index.write_bytes(content)
    assert ShardSet.open(url, cache).offset.tolist() == ShardSet.open(set_copy).offset.tolist()
    assert index.read_bytes() == (set_copy / INDEX).read_bytes()
