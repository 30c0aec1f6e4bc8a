"""The bank holds each distinct report once, belongs to one encoder and one shard set, and appears whole or not at
all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from cardialign.data_shards.text.similarity import RANKS
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_source import SmallSource


@pytest.fixture
def bank(set_copy: Path) -> TextBank:
    return build_text_bank(ShardSet.open(set_copy), HashingEncoder(), batch_size=4)


def test_every_distinct_report_is_embedded_and_tokenised_as_the_encoder_says(set_copy: Path) -> None:
    shards, encoder = ShardSet.open(set_copy), HashingEncoder()
    seen: list[tuple[int, int]] = []
    bank = build_text_bank(shards, encoder, batch_size=4, progress=lambda *now: seen.append(now))
    texts = shards.reports.column("text").to_pylist()
    assert len(bank) == len(texts) == 6 and seen[-1] == (6, 6)
    assert encoder.calls == 6 + len(bank.statements), "each report once, and each statement once"
    assert bank.embeddings.dtype == np.float16 and isinstance(bank.embeddings, np.memmap)
    np.testing.assert_allclose(bank.embedding(np.arange(6)), encoder.embed(texts), atol=1e-3)
    ids, lengths = bank.tokens(np.array([4, 1]))
    wanted_ids, wanted_lengths = encoder.tokenize([texts[4], texts[1]])
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(lengths, wanted_lengths)


def test_centred_vectors_are_unit_and_average_out_over_records(bank: TextBank, set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    held = shards.report[shards.report >= 0]
    embeddings = bank.embedding(held)
    np.testing.assert_allclose(bank.mean, embeddings.mean(axis=0), atol=1e-3)
    centred = bank.centred(held)
    np.testing.assert_allclose(np.linalg.norm(centred, axis=1), 1.0, atol=1e-5)
    cosine, raw = centred @ centred.T, embeddings @ embeddings.T
    assert cosine.mean() < 0.2 < 0.6 < raw.mean()


def test_a_set_with_one_report_has_no_direction_after_centring(tmp_path: Path) -> None:
    build_shards(SmallSource(1), tmp_path / "s", SetPlan(SignalSpec(500, 1)), workers=1)
    bank = build_text_bank(ShardSet.open(tmp_path / "s"), HashingEncoder())
    assert bank.centred(np.array([0])).tolist() == [[0.0] * 32]


def test_statement_sets_are_those_of_the_reports(bank: TextBank, set_copy: Path) -> None:
    reports = ShardSet.open(set_copy).reports.column("statements").to_pylist()
    chosen = np.array([3, 0, 3, 5])
    indptr, ids = bank.statement_sets(chosen)
    names = bank.statements
    for i, report in enumerate(chosen):
        held = ids[indptr[i] : indptr[i + 1]]
        assert (np.diff(held) > 0).all()
        assert {names[j].casefold() for j in held} == {statement.casefold() for statement in reports[report]}
    keys = bank.report_keys(chosen)
    assert keys.dtype == np.int64 and keys[0] == keys[2] and len(set(keys.tolist())) == 3
    indptr, ids = bank.statement_sets(np.array([], dtype=np.int64))
    assert indptr.tolist() == [0] and ids.size == 0


def test_a_bank_is_built_once_per_encoder_and_style(bank: TextBank, set_copy: Path) -> None:
    shards, again = ShardSet.open(set_copy), HashingEncoder()
    assert build_text_bank(shards, again).path == bank.path and again.calls == 0
    others = [build_text_bank(shards, HashingEncoder("other")), build_text_bank(shards, HashingEncoder(), style="merl")]
    assert len({bank.path, *(other.path for other in others)}) == 3
    assert TextBank.open(set_copy, "other").path == others[0].path
    assert TextBank.open(set_copy, "hashing", "merl").path == others[1].path
    with pytest.raises(DataError, match="has 3 text banks"):
        TextBank.open(set_copy)
    assert sorted(path.name for path in (set_copy / "text_bank").iterdir()) == sorted(
        path.path.name for path in (bank, *others)
    )


def test_reports_longer_than_the_tokens_are_told(set_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_text_bank(ShardSet.open(set_copy), HashingEncoder("long", max_tokens=400))
    assert "fill all" not in caplog.text
    short = build_text_bank(ShardSet.open(set_copy), HashingEncoder("short", max_tokens=3))
    texts = ShardSet.open(set_copy).reports.column("text").to_pylist()
    cut = sum(len(text.split()) >= 3 for text in texts)
    assert f"reports={cut} of={len(short)} remark=they fill all 3 tokens" in caplog.text


class BlindEncoder(HashingEncoder):
    """Knows few words: what it does not know is one token, as foreign letters are to a word-piece tokenizer."""

    known: tuple[str, ...] = ()

    def _word_ids(self, text: str) -> list[int]:
        return [5 + self.known.index(word) if word in self.known else 1 for word in text.lower().split()]

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = super().tokenize(texts)
        return np.minimum(ids, 5 + len(self.known)) * (np.arange(self.max_tokens) < 1), np.minimum(lengths, 1)


def test_reports_that_the_encoder_cannot_tell_apart_are_no_bank(
    set_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, encoder = ShardSet.open(set_copy), BlindEncoder("blind")
    reports = len(shards.reports)
    with pytest.raises(DataError, match=f"all {reports} distinct reports are the same") as refused:
        build_text_bank(shards, encoder)
    assert "language and letters" in refused.value.remedy and not list(set_copy.glob("text_bank/[!.]*"))
    with pytest.raises(DataError, match="begin with the same 1 tokens") as cut:
        build_text_bank(shards, BlindEncoder("cut", max_tokens=1))
    assert cut.value.remedy == "raise text.max_tokens"
    first_words = [text.lower().split()[0] for text in shards.reports.column("text").to_pylist()]
    encoder.known = tuple(sorted(set(first_words))[:2])
    alike = reports - len({word if word in encoder.known else "" for word in first_words})
    caplog.clear()
    encoder.fingerprint = "one-eyed"
    build_text_bank(shards, encoder)
    assert f"reports={alike} of={reports} remark=to the text encoder each of them is the same" in caplog.text


def test_the_bank_of_another_shard_set_is_not_taken(bank: TextBank, set_copy: Path, tmp_path: Path) -> None:
    assert TextBank.open(set_copy).path == bank.path
    build_shards(SmallSource(20, seed=4), tmp_path / "other", SetPlan(SignalSpec(500, 1)), workers=1)
    (tmp_path / "other" / "text_bank").mkdir()
    bank.path.rename(tmp_path / "other" / "text_bank" / bank.path.name)
    for folder in (set_copy, tmp_path / "other"):
        with pytest.raises(DataError, match="has no text bank") as caught:
            TextBank.open(folder)
        assert "cardialign text-bank build" in caught.value.remedy


def test_another_cleaning_rule_token_limit_or_format_is_another_bank(
    bank: TextBank, set_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(set_copy)
    longer = build_text_bank(shards, HashingEncoder(max_tokens=13))
    assert longer.path != bank.path
    for name in ("CLEANING_VERSION", "BANK_VERSION"):
        with monkeypatch.context() as changed:
            changed.setattr(f"cardialign.data_shards.text.bank.{name}", 99)
            if name == "BANK_VERSION":
                changed.setattr("cardialign.data_shards.shard_set.bank_description.BANK_VERSION", 99)
            with pytest.raises(DataError, match="has no text bank"):
                TextBank.open(set_copy, "hashing")  # what was embedded under other rules is not taken
            encoder = HashingEncoder()
            made = build_text_bank(shards, encoder)
            assert made.path not in (bank.path, longer.path)
            assert encoder.calls == len(bank) + len(bank.statements)
            assert TextBank.open(set_copy, "hashing").path == made.path


def test_an_empty_report_table_is_named(tmp_path: Path) -> None:
    class Silent(SmallSource):
        def read(self, entry):
            record = super().read(entry)
            record.statements = ()
            return record

    build_shards(Silent(4), tmp_path / "s", SetPlan(SignalSpec(500, 1)), workers=1)
    with pytest.raises(DataError, match=r"report table .*reports.parquet is empty"):
        build_text_bank(ShardSet.open(tmp_path / "s"), HashingEncoder())


def test_a_failing_encoder_leaves_no_bank(set_copy: Path) -> None:
    class Broken(HashingEncoder):
        def embed(self, texts: list[str]) -> np.ndarray:
            return super().embed(texts) * np.nan

    class Narrow(HashingEncoder):
        def embed(self, texts: list[str]) -> np.ndarray:
            return super().embed(texts)[:, :5]

    shards = ShardSet.open(set_copy)
    with pytest.raises(DataError, match="no finite embedding for the report 'Sinus rhythm"):
        build_text_bank(shards, Broken())
    with pytest.raises(DataError, match=r"gave embeddings \(6, 5\)"):
        build_text_bank(shards, Narrow())
    assert list((set_copy / "text_bank").iterdir()) == []
    with pytest.raises(UsageError, match="unknown report style 'poem'"):
        build_text_bank(shards, HashingEncoder(), style="poem")


def test_a_bank_with_a_cut_array_or_an_incomplete_description_says_what_to_do(bank: TextBank) -> None:
    (bank.path / "token_ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"token_ids\.npy has 6 bytes, bank\.json says \d+: truncated") as caught:
        TextBank(bank.path, digests=False)
    assert "delete the folder" in caught.value.remedy
    description = json.loads((bank.path / "bank.json").read_text())
    del description["shards"]
    (bank.path / "bank.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"bank\.json is damaged: it lacks shards"):
        TextBank(bank.path)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_bank_met_by_the_limit_of_open_files_is_not_to_be_deleted(
    bank: TextBank, monkeypatch: pytest.MonkeyPatch, code: int, digests: bool
) -> None:
    really_open = os.open

    def used_up(path: Any, *flags: Any, **more: Any) -> int:
        if str(path).endswith(".npy"):
            raise OSError(code, os.strerror(code))
        return really_open(path, *flags, **more)

    with monkeypatch.context() as patched, pytest.raises(DataError, match=os.strerror(code)) as caught:
        patched.setattr("cardialign.data_shards.shard_set.storage.PAUSES", (0.0,))
        patched.setattr(os, "open", used_up)
        TextBank(bank.path, digests=digests)
    assert "ulimit -n" in caught.value.remedy and "delete" not in caught.value.remedy


def test_records_without_a_report_are_refused_with_the_remedy(bank: TextBank) -> None:
    with pytest.raises(DataError, match="record without a report") as caught:
        bank.centred(np.array([0, -1]))
    assert "require_report" in caught.value.remedy
    with pytest.raises(DataError, match="report 99 is not in the text bank of 6"):
        bank.report_keys(np.array([99]))


BUILD_AND_DIE = """
import os, signal, sys
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from tests.support.hashing_encoder import HashingEncoder

class Mortal(HashingEncoder):
    def embed(self, texts):
        if self.calls >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)

build_text_bank(ShardSet.open(sys.argv[1]), Mortal(), block=2, batch_size=1)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_build_goes_on_where_it_stopped_and_gives_the_same_bytes(set_copy: Path, tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", BUILD_AND_DIE, str(set_copy)], cwd=Path(__file__).parents[3], timeout=60, check=False
    )
    assert child.returncode == -signal.SIGKILL
    (building,) = (set_copy / "text_bank").iterdir()
    assert building.name.endswith(".building") and len(list(building.glob("reports-*.npz"))) == 2
    with pytest.raises(DataError, match="has no text bank"):
        TextBank.open(set_copy)
    shards, encoder = ShardSet.open(set_copy), HashingEncoder()
    bank = build_text_bank(shards, encoder, block=2, batch_size=1)
    assert encoder.calls == 2 + 5 and not building.exists(), "two reports, and the five statements"
    whole = build_text_bank(shards, HashingEncoder(), tmp_path / "elsewhere", block=2, batch_size=1)
    assert files_of(bank.path) == files_of(whole.path)


def test_a_block_with_flipped_embedding_bits_is_made_again_and_blocks_of_another_encoder_are_not_met(
    set_copy: Path,
) -> None:
    class Tired(HashingEncoder):
        def embed(self, texts: list[str]) -> np.ndarray:
            if self.calls >= 4:
                raise KeyboardInterrupt
            return super().embed(texts)

    shards = ShardSet.open(set_copy)
    with pytest.raises(KeyboardInterrupt):
        build_text_bank(shards, Tired(), block=2, batch_size=2)
    (building,) = (set_copy / "text_bank").iterdir()
    first = sorted(building.iterdir())[0]
    damaged = bytearray(first.read_bytes())
    damaged[200] ^= 0xFF  # inside the embeddings
    first.write_bytes(bytes(damaged))
    other, again = HashingEncoder("other"), HashingEncoder()
    build_text_bank(shards, other, block=2, batch_size=2)
    bank = build_text_bank(shards, again, block=2, batch_size=2)
    assert (other.calls, again.calls) == (6 + 5, 4 + 5), "reports, and the five statements"
    np.testing.assert_allclose(
        bank.embedding(np.arange(6)), HashingEncoder().embed(shards.reports.column("text").to_pylist()), atol=1e-3
    )


def test_the_low_rank_similarity_is_as_good_as_the_bank_says(bank: TextBank) -> None:
    reports = np.arange(len(bank))
    whole = bank.similarity_features(reports)
    np.testing.assert_array_equal(whole, bank.centred(reports))
    low = bank.similarity_features(reports, 16)
    assert low.shape == (6, 16)
    error = np.abs(whole @ whole.T - low @ low.T)[~np.eye(6, dtype=bool)]
    (stated,) = bank.description["low_rank"]
    assert stated["rank"] == 16 == RANKS[0] and stated["max_error"] == pytest.approx(error.max(), abs=2e-6)
    assert stated["mean_error"] == pytest.approx(error.mean(), rel=0.05, abs=2e-6)  # 20,000 draws from 30 pairs


def test_jaccard_is_that_of_the_statement_sets(bank: TextBank, set_copy: Path) -> None:
    reports = [
        {s.casefold() for s in each} for each in ShardSet.open(set_copy).reports.column("statements").to_pylist()
    ]
    first, second = np.array([0, 3, 5, 3]), np.array([1, 3])
    wanted = [[len(reports[i] & reports[j]) / len(reports[i] | reports[j]) for j in second] for i in first]
    np.testing.assert_array_equal(bank.jaccard(first, second), np.array(wanted, dtype=np.float32))
    assert (np.diag(bank.jaccard(first)) == 1).all() and bank.jaccard(first)[1, 3] == 1
