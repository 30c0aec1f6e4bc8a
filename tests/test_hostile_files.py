"""Whatever stands in a file of others, it is read for what it says or refused in words: no crash, no hang, nothing
taken for the whole file that it is not."""

from __future__ import annotations

import random
import shutil
import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cardialign.data_shards.errors import RecordRejected, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.hostile_kinds import KINDS, Kind, write_proof, write_run, write_signals, write_texts
from tests.support.mutations import mutated

LONGEST_SECONDS = 5.0
EACH, EACH_SLOWLY = 1, 230
"""Inputs of each of the kinds; the long form has more than 10,000 in all."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.support.exposed import exposed
    from tests.support.tiny_shards import make_shards

    folder = tmp_path_factory.mktemp("examples")
    for name, write in (("signals", write_signals), ("texts", write_texts), ("run", write_run)):
        (folder / name).mkdir()
        write(folder / name)
    make_shards(folder / "set")
    exposed(ShardSet.open(folder / "set"), folder / "export", list(range(40)))
    (folder / "proof").mkdir()
    write_proof(folder / "proof", folder / "export")
    return {path.name: path for path in folder.iterdir()}


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Of this process' own work, whatever others do on the machine; what waits for ever ends after a minute."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    started = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < seconds


def outcome(kind: Kind, folder: Path) -> tuple[str, object]:
    """("read", what) or ("refused", why); any other exception passes."""
    try:
        with no_longer_than(LONGEST_SECONDS):
            return "read", kind.read(folder)
    except (UserError, RecordRejected, ValueError, OSError) as error:
        if type(error) in (ValueError, OSError) and not kind.name.startswith(("checkpoint: random", "checkpoint: wei")):
            raise  # only the doors themselves say it so
        return "refused", str(error)


def tried(kind: Kind, examples: dict[str, Path], folder: Path, count: int) -> None:
    source = examples[kind.example]
    whole = kind.read(shutil.copytree(source, folder / "whole"))
    for number in range(count):
        random_ = random.Random(f"{kind.name} {number}")
        here = shutil.copytree(source, folder / f"{number}", symlinks=True)
        file = next(here.glob(kind.file))
        content = mutated(file.read_bytes(), random_)
        file.write_bytes(content)
        if kind.seal is not None:
            try:
                kind.seal(here)
            except Exception:  # what was changed cannot be sealed
                shutil.rmtree(here)
                continue
        try:
            word, result = outcome(kind, here)
            assert word == "read" or (str(result).strip() and "defect of ours" not in str(result))
            if word == "read" and result != whole:
                assert kind.legal is not None and kind.legal(content, result), f"silently accepted: {result!r:.200}"
        except BaseException as error:
            error.add_note(f"{kind.name}, input {number}, crc32 {zlib.crc32(content):#010x}: {content[:200]!r}")
            raise
        shutil.rmtree(here)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_changed_file_is_read_for_what_it_says_or_refused(
    kind: Kind, examples: dict[str, Path], tmp_path: Path
) -> None:
    tried(kind, examples, tmp_path, EACH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_ten_thousand_changed_files_are_read_for_what_they_say_or_refused(
    kind: Kind, examples: dict[str, Path], tmp_path: Path
) -> None:
    assert EACH_SLOWLY * len(KINDS) >= 10_000
    tried(kind, examples, tmp_path, EACH_SLOWLY)
