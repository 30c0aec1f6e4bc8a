"""The bank holds each distinct report once, belongs to one encoder and one shard set, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import build_shards
from data_shards.errors import DataError, UsageError
from data_shards.record import SignalSpec
from data_shards.shard_set import ShardSet
from data_shards.text_bank import TextBank, build_text_bank
from tests.data_shards.small_source import SmallSource


class HashingEncoder:
    """Feature hashing of words: a real, deterministic text encoder without weights. `calls` counts the reports it was given."""

    def __init__(self, name: str = "hashing", dim: int = 32, max_tokens: int = 12) -> None:
        self.fingerprint, self.dim, self.max_tokens, self.calls = name, dim, max_tokens, 0

    def _word_ids(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        return [int.from_bytes(hashlib.sha256(f"{self.fingerprint} {word}".encode()).digest()[:4], "little") % 30_000 + 1 for word in words]

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), self.max_tokens), dtype=np.int32)
        rows = [self._word_ids(text)[: self.max_tokens] for text in texts]
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids, np.array([len(row) for row in rows])

    def embed(self, texts: list[str]) -> np.ndarray:
        self.calls += len(texts)
        out = np.ones((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in self._word_ids(text):
                out[i, word % self.dim] += 1.0
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def describe(self) -> dict:
        return {"id": self.fingerprint, "pooling": "sum"}


@pytest.fixture
def bank(set_copy: Path) -> TextBank:
    return build_text_bank(ShardSet.open(set_copy), HashingEncoder(), batch_size=4)


def test_every_distinct_report_is_embedded_and_tokenised_as_the_encoder_says(set_copy: Path) -> None:
    shards, encoder = ShardSet.open(set_copy), HashingEncoder()
    seen: list[tuple[int, int]] = []
    bank = build_text_bank(shards, encoder, batch_size=4, progress=lambda *now: seen.append(now))
    texts = shards.reports.column("text").to_pylist()
    assert encoder.calls == len(bank) == len(texts) == 6 and seen[-1] == (6, 6)
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
    build_shards(SmallSource(1), tmp_path / "s", spec=SignalSpec(500, 1), workers=1)
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
    assert sorted(path.name for path in (set_copy / "text_bank").iterdir()) == sorted(path.path.name for path in (bank, *others))


def test_the_bank_of_another_shard_set_is_not_taken(bank: TextBank, set_copy: Path, tmp_path: Path) -> None:
    assert TextBank.open(set_copy).path == bank.path
    build_shards(SmallSource(20, seed=4), tmp_path / "other", spec=SignalSpec(500, 1), workers=1)
    (tmp_path / "other" / "text_bank").mkdir()
    bank.path.rename(tmp_path / "other" / "text_bank" / bank.path.name)
    for folder in (set_copy, tmp_path / "other"):
        with pytest.raises(DataError, match="has no text bank") as caught:
            TextBank.open(folder)
        assert "cardialign text-bank build" in caught.value.remedy


def test_an_empty_report_table_is_named(tmp_path: Path) -> None:
    class Silent(SmallSource):
        def read(self, entry):
            record = super().read(entry)
            record.statements = ()
            return record

    build_shards(Silent(4), tmp_path / "s", spec=SignalSpec(500, 1), workers=1)
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


def test_a_damaged_bank_says_what_to_do(bank: TextBank) -> None:
    (bank.path / "token_ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cannot be read") as caught:
        TextBank(bank.path)
    assert "delete the folder" in caught.value.remedy
    description = json.loads((bank.path / "bank.json").read_text())
    del description["shards"]
    (bank.path / "bank.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"lacks \['shards'\]"):
        TextBank(bank.path)


def test_records_without_a_report_are_refused_with_the_remedy(bank: TextBank) -> None:
    with pytest.raises(DataError, match="record without a report") as caught:
        bank.centred(np.array([0, -1]))
    assert "require_report" in caught.value.remedy
    with pytest.raises(DataError, match="report 99 is not in the text bank of 6"):
        bank.report_keys(np.array([99]))
