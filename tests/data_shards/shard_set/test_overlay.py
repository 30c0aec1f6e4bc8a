"""Other reports beside a set: bound to it, whole or refused, and what is read with and without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.overlay import write_overlay
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import NoTextBankError, TextBank, build_text_bank
from cardialign.data_shards.text.joined_bank import JoinedBank
from tests.support.tiny_shards import RATE, RECORDS, SECONDS, HashingEncoder, TinySource

SILENT = 4


def make_shards(folder: Path, silent: int = SILENT) -> Path:
    plan = SetPlan(SignalSpec(RATE, SECONDS), records_per_shard=20)
    return build_shards(TinySource(silent), folder, plan, workers=1).path


def small_encoder() -> HashingEncoder:
    encoder = HashingEncoder()
    encoder.dim = 16
    return encoder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("overlay") / "shards")


def said(shard_set: ShardSet) -> list[tuple[str, ...]]:
    """Statements of every record, () without a report."""
    table = [tuple(each) for each in shard_set.reports.column("statements").to_pylist()]
    return [table[number] if number >= 0 else () for number in shard_set.report.tolist()]


def with_more(shard_set: ShardSet, word: str) -> list[tuple[str, ...]]:
    """Every third record says one thing more."""
    return [(*own, word) if own and row % 3 == 0 else own for row, own in enumerate(said(shard_set))]


@pytest.fixture(scope="module")
def overlay(shards: Path) -> Path:
    plain = ShardSet.open(shards)
    out = shards.parent / "completed"
    wanted = with_more(plain, "Tall T waves")
    write_overlay(plain, out, [wanted[:25], wanted[25:]], {"kind": "test"})
    return out


def test_every_record_says_what_was_written_and_shows_what_it_showed(shards: Path, overlay: Path) -> None:
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=overlay)
    assert said(other) == with_more(plain, "Tall T waves") and said(other) != said(plain)
    assert (other.report[:SILENT] == -1).all() and other.report_count == len(set(said(other)) - {()})
    counts = [said(other).count(text) for text in dict.fromkeys(said(other)) if text]
    assert other.reports.column("count").to_pylist() == counts
    assert other.fingerprint == plain.fingerprint
    one, two = (each.select(require_report=True) for each in (plain, other))
    assert one.fingerprint == two.fingerprint and np.array_equal(one.rows, two.rows)
    assert np.array_equal(other.read_record(7).counts, plain.read_record(7).counts)


def test_a_second_step_stands_on_the_first_and_says_both(shards: Path, overlay: Path, tmp_path: Path) -> None:
    first = ShardSet.open(shards, reports=overlay)
    second = write_overlay(first, tmp_path / "more", [with_more(first, "PR 160 ms")], {"kind": "second"})
    assert [step["kind"] for step in second.made] == ["test", "second"]
    assert said(ShardSet.open(shards, reports=tmp_path / "more"))[6][-2:] == ("Tall T waves", "PR 160 ms")


def test_the_bank_of_other_reports_lies_beside_them_and_is_never_taken_for_the_sets_own(
    shards: Path, overlay: Path
) -> None:
    encoder = small_encoder()
    with pytest.raises(NoTextBankError, match="completed has no text bank"):
        TextBank.open(shards, encoder.fingerprint, reports=overlay)
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=overlay)
    built = build_text_bank(other, encoder)
    assert built.path.parent.parent == overlay and len(built) == other.report_count
    own = build_text_bank(plain, encoder)
    opened = TextBank.open(shards, encoder.fingerprint, reports=overlay)
    assert opened.digest == built.digest != own.digest and own.path.parent.parent == shards
    assert TextBank.open(shards, encoder.fingerprint).digest == own.digest
    texts = other.reports.column("text").to_pylist()
    for row in (6, 7):
        wanted = encoder.embed([texts[int(other.report[row])]])[0]
        assert np.allclose(opened.embedding(other.report[row : row + 1])[0], wanted, atol=2e-3)


def test_the_same_reports_in_other_hands_are_another_bank(shards: Path, overlay: Path, tmp_path: Path) -> None:
    """Distinct reports and their counts may be equal where the records have exchanged them."""
    plain = ShardSet.open(shards)
    own = said(plain)
    given = list(own)
    given[SILENT], given[SILENT + 1] = own[SILENT + 1], own[SILENT]
    given[SILENT + 35], given[SILENT + 36] = own[SILENT + 36], own[SILENT + 35]
    digests = set()
    for name, statements in (("a", own), ("b", given)):
        write_overlay(plain, tmp_path / name, [statements], {"kind": name})
        digests.add(build_text_bank(ShardSet.open(shards, reports=tmp_path / name), small_encoder()).digest)
    assert len(digests) == 2


def test_in_a_mixture_each_set_keeps_its_own_reports(shards: Path, overlay: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=overlay)
    banks = [build_text_bank(plain, encoder), build_text_bank(other, encoder)]
    joined = JoinedSets([plain, other])
    bank = JoinedBank(joined, banks)
    assert joined.report.max() == plain.report_count + other.report_count - 1
    row = RECORDS + 6
    assert np.array_equal(bank.embedding(joined.report[row : row + 1]), banks[1].embedding(other.report[6:7]))
    with pytest.raises(DataError, match="does not belong to shard set"):
        JoinedBank(joined, banks[::-1])


def test_what_is_not_as_it_was_written_or_for_another_set_is_refused(
    shards: Path, overlay: Path, tmp_path: Path
) -> None:
    other_set = make_shards(tmp_path / "other", SILENT + 1)
    with pytest.raises(DataError, match="were made for another shard set"):
        ShardSet.open(other_set, reports=overlay)
    with pytest.raises(DataError, match=r"holds no reports beside a set \(no overlay.json\)"):
        ShardSet.open(shards, reports=tmp_path / "nothing")
    with pytest.raises(UsageError, match="is a URL"):
        ShardSet.open(shards, reports="s3://bucket/reports")
    with pytest.raises(UserError, match="exists already"):
        write_overlay(ShardSet.open(shards), overlay, [], {})
    for name, change in (("report.npy", "content"), ("reports.parquet", "size"), ("report.npy", "missing")):
        copy = tmp_path / f"{name}-{change}"
        shutil.copytree(overlay, copy)
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        if change == "missing":
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content if change == "content" else content[:-5])
        with pytest.raises(DataError, match=rf"{name} is not as it was written \({change}\)"):
            ShardSet.open(shards, reports=copy)
    damaged = tmp_path / "damaged"
    shutil.copytree(overlay, damaged)
    values = json.loads((damaged / "overlay.json").read_text())
    for change, sentence in (({"version": 9}, "version 9"), ({"files": {}}, "no sha256 of reports.parquet")):
        (damaged / "overlay.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(DataError, match=sentence):
            ShardSet.open(shards, reports=damaged)


def test_a_half_written_folder_is_none(shards: Path, tmp_path: Path) -> None:
    def breaks():  # type: ignore[no-untyped-def]
        yield said(ShardSet.open(shards))[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay(ShardSet.open(shards), tmp_path / "half", breaks(), {})
    assert list(tmp_path.iterdir()) == []
