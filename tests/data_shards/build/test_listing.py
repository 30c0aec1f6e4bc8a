"""The listing on disk: entries come back as they were, keys are distinct, and a build that dies while it lists leaves
nothing to trip over."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.build import listing as listing_module
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.listing import decode_entries, encode_entries, read_slice, write_listing
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.sources.base import Entry
from tests.data_shards.build.test_build import build, digests
from tests.support.small_source import SmallSource

words = st.text(st.characters(codec=None), max_size=8)  # lone surrogates too: names of files that are no UTF-8
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
facts = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.sampled_from(("[]", "{}", "a")) | words, inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.builds(Entry, words, words, st.dictionaries(words, facts, max_size=4))


def same(one: Any, other: Any) -> bool:
    """Equal in every type too: 1, 1.0 and True differ, and so do (), [] and 0.0, -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@settings(deadline=None)
@given(st.lists(entries, max_size=4))
def test_entries_come_back_as_they_were(listed: list[Entry]) -> None:
    restored = decode_entries(encode_entries(listed))
    assert len(restored) == len(listed)
    for one, other in zip(restored, listed, strict=True):
        assert (one.key, one.path) == (other.key, other.path) and same(one.meta, other.meta)


@pytest.mark.parametrize("fact", [Path("a"), np.int64(3), {1: "a"}, ({"b": {2}},), b"bytes"])
def test_a_fact_that_cannot_be_kept_is_refused_with_its_record(fact: object) -> None:
    with pytest.raises(DataError, match=r"mine: what the listing says about record r-7 cannot be kept: a "):
        encode_entries([Entry("r-6", "x", {}), Entry("r-7", "y", {"fact": fact})], "mine")


def nested(kind: type, deep: int) -> Any:
    fact: Any = 7
    for _ in range(deep):
        fact = {"a": fact} if kind is dict else kind([fact])
    return fact


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_facts_in_one_another_come_back_to_a_depth_and_are_refused_with_their_record_beyond(kind: type) -> None:
    listed = [Entry("r-6", "x", {"fact": nested(kind, 64), "id": 10**40, "name": "f\udcff"})]
    assert decode_entries(encode_entries(listed)) == listed
    for deep in (65, 100_000):
        with pytest.raises(DataError, match=r"mine: .* record r-7 cannot be kept: more than 64 lists"):
            encode_entries([*listed, Entry("r-7", "y", {"fact": nested(kind, deep)})], "mine")


def test_slices_hold_what_is_kept_in_order_and_their_cut_does_not_change_the_digest(tmp_path: Path) -> None:
    source = SmallSource(23)
    whole = source.entries()
    made = {size: write_listing(source, tmp_path / f"l{size}", size) for size in (1, 5, 23, 100)}
    for size, listing in made.items():
        assert [each.entries for each in listing.slices] == [len(whole[at : at + size]) for at in range(0, 23, size)]
        assert list(listing) == whole and len(listing) == 23
    assert read_slice(made[5].path, made[5].slices[2]) == whole[10:15]
    assert len({listing.sha256 for listing in made.values()}) == 1
    assert write_listing(SmallSource(22), tmp_path / "other", 5).sha256 != made[5].sha256
    assert list(write_listing(source, tmp_path / "few", 5, limit=7)) == whole[:7]


def test_folds_that_the_listing_knows_are_left_out_and_others_kept(tmp_path: Path) -> None:
    class Folded(SmallSource):
        def entries(self) -> Iterator[Entry]:
            return (
                Entry(entry.key, entry.path, {"fold": number % 3} if number else {})
                for number, entry in enumerate(super().entries())
            )

    kept = list(write_listing(Folded(9), tmp_path / "l", 4, folds=(1,), limit=3))
    assert [entry.key[-1] for entry in kept] == ["0", "1", "4"]
    with pytest.raises(DataError, match=r"no record to read under . in folds \[7\]"):
        write_listing(SmallSource(0), tmp_path / "l", 4, folds=(7,))


@pytest.mark.parametrize("key", ["a b", "a.b", "a/b", "", "ü"])
def test_keys_that_shards_cannot_hold_are_refused_by_name(tmp_path: Path, key: str) -> None:
    class Odd(SmallSource):
        def entries(self) -> list[Entry]:
            return [Entry("good-1", "x"), Entry(key, "files/bad")]

    with pytest.raises(DataError, match="files/bad"):
        write_listing(Odd(2), tmp_path / "l", 4)


class Repeats(SmallSource):
    """Lists one of its records again, under another path, beyond the limit of the build."""

    def entries(self) -> Iterator[Entry]:
        yield from super().entries()
        yield Entry("small-00007", "copy/00007", {"number": 7})


def test_a_key_that_is_listed_twice_is_named_with_both_records_even_when_only_few_are_built(tmp_path: Path) -> None:
    for limit in (None, 5):
        with pytest.raises(
            DataError, match=r"'small-00007' occurs more than once: files/00007 \(record 8 .*copy/00007 \(record 21\)"
        ):
            build(tmp_path / "s", source=Repeats(20), limit=limit)
        assert not (tmp_path / "s").exists()


def test_two_keys_of_one_hash_are_two_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "hash", len, raising=False)  # all keys of one length look alike
    assert len(write_listing(SmallSource(20), tmp_path / "l", 8)) == 20
    with pytest.raises(DataError, match="'small-00007' occurs more than once"):
        write_listing(Repeats(20), tmp_path / "m", 8)


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_damaged_listing_is_named_and_written_anew_by_the_next_build(tmp_path: Path, harm: str) -> None:
    class Harms:
        def run(self, source: Any, tasks: Any, count: Any) -> Iterator[Any]:
            path = tmp_path / "s/.build/listing"
            content = path.read_bytes()
            if harm == "gone":
                path.unlink()
            else:
                path.write_bytes(
                    content[:-9] if harm == "cut" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
                )
            for task in tasks:
                read_slice(path, task.slice)
            yield

    with pytest.raises(DataError, match=r"listing .*s/\.build/listing") as caught:
        build_shards(
            SmallSource(20), tmp_path / "s", SetPlan(SignalSpec(500, 1), records_per_shard=16), executor=Harms()
        )
    assert "writes the listing anew" in caught.value.remedy
    assert build(tmp_path / "s", 20).records == 20  # type: ignore[attr-defined]


class DiesListing(SmallSource):
    """Ends its process at record `at` of the listing, as a kill would."""

    at = 40

    def entries(self) -> Iterator[Entry]:
        for number, entry in enumerate(super().entries()):
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield entry


def die_listing(out: Path, **options: Any) -> None:
    """The same build in a forked process, which is killed while it writes the listing."""
    child = os.fork()
    if child == 0:
        try:
            build(out, source=DiesListing(60), **options)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_build_killed_while_it_lists_starts_again_whatever_the_folder_held(tmp_path: Path) -> None:
    build(tmp_path / "whole", 60)
    wanted = digests(tmp_path / "whole")
    die_listing(tmp_path / "new")
    assert [file.name for file in (tmp_path / "new/.build").iterdir() if not file.name.endswith(".tmp")] == ["lock"]
    build(tmp_path / "new", 60)
    assert digests(tmp_path / "new") == wanted

    build(tmp_path / "old", 20)
    before = digests(tmp_path / "old")
    die_listing(tmp_path / "old", overwrite=True)
    after = {name: digest for name, digest in digests(tmp_path / "old").items() if not name.startswith(".build")}
    assert after == before, "a finished set was touched before its replacement was listed"
    build(tmp_path / "old", 60, overwrite=True)
    assert digests(tmp_path / "old") == wanted


def test_a_listing_that_fails_leaves_the_finished_set_that_it_should_replace(tmp_path: Path) -> None:
    build(tmp_path / "s", 20)
    before = digests(tmp_path / "s")
    with pytest.raises(DataError, match="occurs more than once"):
        build(tmp_path / "s", source=Repeats(20), overwrite=True)
    assert digests(tmp_path / "s") == before


@pytest.mark.parametrize("again", [True, False], ids=["the same command", "without overwrite"])
def test_what_an_interrupted_overwrite_left_behind_is_never_taken_over(tmp_path: Path, again: bool) -> None:
    """Killed after the manifest went and before the shards did: a smaller set must not keep the larger one's shards,
    and what is not ours stays."""
    build(tmp_path / "whole", 30)
    out = tmp_path / "s"
    build(out, 60)
    (out / "thesis.tex").write_text("years of work")
    die_removing_shards(out, 30)
    assert not (out / "manifest.json").exists() and len(list(out.glob("shard-*.tar"))) == 4
    build(out, 30, overwrite=again)
    left = digests(out)
    assert left.pop("thesis.tex") and left == digests(tmp_path / "whole")


def die_removing_shards(out: Path, records: int) -> None:
    """A build in a forked process that replaces the set, killed when it is about to remove the first shard."""
    child = os.fork()
    if child == 0:

        def watch(event: str, arguments: tuple) -> None:
            if event == "os.remove" and re.fullmatch(rf"{re.escape(str(out))}/shard-\d+\.tar", str(arguments[0])):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            build(out, records, overwrite=True)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_task_carries_a_place_and_no_entries(tmp_path: Path) -> None:
    sizes = {}
    for records in (40, 4000):
        listing = write_listing(SmallSource(records), tmp_path / "l", records)
        sizes[records] = len(pickle.dumps(listing.slices))
    assert sizes[4000] <= sizes[40] + 8


def test_progress_counts_what_is_listed_before_the_total_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "PROGRESS_SECONDS", 0.0)
    calls: list[tuple[int, int, int]] = []
    build(tmp_path / "s", 9000, limit=3, progress=lambda *now: calls.append(now))
    assert calls[:2] == [(4096, 0, 0), (8192, 0, 0)] and calls[-1] == (3, 3, 0)


def test_a_full_disk_is_said_while_listing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="disk full while writing /dev/full"):
        write_listing(SmallSource(20), Path("/dev/full"), 8)
    with pytest.raises(DataError, match=r"cannot write .*nowhere"):
        write_listing(SmallSource(20), tmp_path / "nowhere/listing", 8)
